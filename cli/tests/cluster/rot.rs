//! A byte that rots on one disk is never read by anybody.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files::{read, upload};
use super::http;
use super::rig::{Cluster, Plan, Server, noise};

/// The slot file that holds this block, and where.
pub fn find(server: &Server, block: &[u8]) -> Option<(PathBuf, u64)> {
    let slots = std::fs::read_dir(server.data.join("slots")).ok()?;
    slots.flatten().find_map(|entry| position(&entry.path(), block).map(|at| (entry.path(), at)))
}

fn position(path: &Path, block: &[u8]) -> Option<u64> {
    let bytes = std::fs::read(path).ok()?;
    bytes.chunks(block.len()).position(|candidate| candidate == block).map(|index| (index * block.len()) as u64)
}

pub async fn metric(server: &Server, name: &str) -> f64 {
    let text = http::get(&server.admin(), "/metrics").await.unwrap().body;
    let text = String::from_utf8(text).unwrap();
    text.lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_read_right_from_another_replica_and_counted() {
    // Without scrub: it would repair the block before anybody reads it.
    let mut cluster = Cluster::start(Plan { gateway: false, scrub: false, ..Plan::default() }).await;
    let content = noise(11, 5 << 20);
    upload(&cluster.client(), "/rotten", &content).await;
    // Written through a clean stop, so that nothing of it is in a cache of the servers.
    for server in &mut cluster.chunkservers {
        server.terminate();
    }
    for server in &cluster.chunkservers[..2] {
        let (slot, at) = find(server, &content[8192..12_288]).expect("the block is in a slot file, byte for byte");
        let file = std::fs::File::options().write(true).open(slot).unwrap();
        file.write_all_at(&[!content[8192 + 100]], at + 100).unwrap();
        file.sync_all().unwrap();
    }
    cluster.start_all().await;
    for _ in 0..6 {
        // A new client each time: whichever replica it prefers, the bytes are right.
        assert!(read(&cluster.client(), "/rotten").await == content, "a wrong byte was read");
    }
    let mut counted = 0.0;
    for server in &cluster.chunkservers[..2] {
        counted += metric(server, "hercules_bad_blocks_total").await;
    }
    assert!(counted >= 1.0, "the damage was not counted");
}
