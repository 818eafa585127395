//! The engine is what it says: direct I/O, one set of rings per shard, nothing in the page cache.

use std::process::Command;

use super::files::upload;
use super::rig::{Cluster, Plan, noise};

/// Whether a tool is there; says plainly when the test is skipped.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("SKIPPED: {tool} is not installed (apt-get install util-linux)");
    }
    found
}

/// What a process has open: the path, and whether by direct I/O. Read from the kernel, because the
/// engine opens its files through its rings, where no system call is to be traced.
fn open_files(pid: u32) -> Vec<(String, bool)> {
    let base = format!("/proc/{pid}");
    let descriptors = std::fs::read_dir(format!("{base}/fd")).unwrap();
    let look = |name: &str| {
        let path = std::fs::read_link(format!("{base}/fd/{name}")).ok()?;
        let info = std::fs::read_to_string(format!("{base}/fdinfo/{name}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
        let direct = rustix::fs::OFlags::from_bits_retain(flags).contains(rustix::fs::OFlags::DIRECT);
        Some((path.display().to_string(), direct))
    };
    descriptors.flatten().filter_map(|entry| look(entry.file_name().to_str()?)).collect()
}

fn rings(pid: u32) -> usize {
    open_files(pid).iter().filter(|(path, _)| path == "anon_inode:[io_uring]").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn chunk_data_goes_by_direct_io_through_one_set_of_rings_per_shard() {
    let mut counts = Vec::new();
    for shards in [1, 2] {
        let cluster = Cluster::start(Plan { gateway: false, shards, ..Plan::default() }).await;
        upload(&cluster.client(), "/file", &noise(1, 70 << 20)).await;
        for server in &cluster.chunkservers {
            let data = format!("{}/", server.data.display());
            let files = open_files(server.pid());
            let of_disk = |(path, _): &&(String, bool)| path.starts_with(&data);
            let in_use: Vec<_> = files.iter().filter(of_disk).collect();
            for part in ["/slots/", "/journal/ring-", "/DISK."] {
                assert!(in_use.iter().any(|(path, _)| path.contains(part)), "nothing of {part} is open: {files:?}");
            }
            assert!(in_use.iter().all(|(_, direct)| *direct), "not direct: {in_use:?}");
            counts.push(rings(server.pid()) as u32 / shards);
            assert_eq!(rings(server.pid()) as u32 % shards, 0, "each shard has the same rings");
        }
    }
    assert!(counts[0] > 0 && counts.iter().all(|count| *count == counts[0]), "rings per shard: {counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_leaves_no_chunk_data_in_the_page_cache() {
    if !has("fincore") {
        return;
    }
    let cluster = Cluster::start(Plan { gateway: false, ..Plan::default() }).await;
    upload(&cluster.client(), "/uncached", &noise(2, 130 << 20)).await;
    let mut checked = 0;
    for server in &cluster.chunkservers {
        for entry in std::fs::read_dir(server.data.join("slots")).unwrap() {
            let path = entry.unwrap().path();
            let output =
                Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(&path).output();
            let resident = String::from_utf8(output.unwrap().stdout).unwrap();
            assert_eq!(resident.trim(), "0", "{} has pages in the cache", path.display());
            checked += 1;
        }
    }
    assert!(checked >= 9, "three servers with three chunks each: {checked}");
}
