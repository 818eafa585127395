//! The disk of a real chunkserver under `fsck`, `inspect` and `disk`: real files, changed by hand.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene should fail loudly")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use support::{Cluster, Options, hercules, succeeded};

/// Start of the two halves of a slot's trailer, and of their first CRC page.
const HALVES: [u64; 2] = [0x0400_0000, 0x0401_8000];
const CRC_0: u64 = 0x6000;

/// One chunkserver with a file of 1,000,000 bytes.
struct Scene {
    cluster: Cluster,
    disk: PathBuf,
    content: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let options = Options { chunkservers: 1, replicas: 1, shards: 2, journal: "1M".into(), ..Options::default() };
        let cluster = Cluster::start(&options);
        let content: Vec<u8> = (0..1_000_000_u32).map(|at| (at / 7 % 251) as u8).collect();
        let file = cluster.scratch().join("file");
        fs::write(&file, &content).unwrap();
        cluster.run(["put", file.to_str().unwrap(), "/file"]);
        let disk = cluster.chunkservers[0].dir.clone();
        Self { cluster, disk, content }
    }

    fn stop(&mut self) {
        assert_eq!(self.cluster.chunkservers[0].terminate(), 0);
    }

    /// A command about the disk.
    fn on_disk(&self, args: &[&str]) -> Output {
        let (first, rest) = args.split_at(if args[0] == "disk" { 2 } else { 1 });
        hercules().args(first).arg("--data-dir").arg(&self.disk).args(rest).output().unwrap()
    }

    /// Its output as objects.
    fn json(&self, args: &[&str]) -> Vec<Value> {
        let output = self.on_disk(&[args, &["--json"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Slot and handle of the only chunk.
    fn chunk(&self) -> (u64, String) {
        let found = self.json(&["inspect"]).remove(0);
        let slots: Vec<&Value> =
            found["slots"].as_array().unwrap().iter().filter(|slot| slot["state"] != "FREE").collect();
        assert_eq!(slots.len(), 1, "{found}");
        (slots[0]["slot"].as_u64().unwrap(), slots[0]["chunk"].as_str().unwrap().to_owned())
    }

    fn slot_file(&self) -> PathBuf {
        self.disk.join(format!("slots/{:08}", self.chunk().0))
    }
}

/// Changes a byte, past every cache of ours.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
    file.sync_all().unwrap();
}

/// Every file below a folder: content, and when it was changed last.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            let about = fs::metadata(&path).unwrap();
            all.insert(path.clone(), (fs::read(&path).unwrap(), about.mtime(), about.mtime_nsec()));
        }
    }
    all
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_disk_in_use_is_left_alone_and_a_stopped_one_is_clean() {
    let mut scene = Scene::new();
    let refused = scene.on_disk(&["fsck"]);
    assert_eq!(refused.status.code(), Some(78), "{}", err(&refused));
    assert!(
        err(&refused).contains("in use by another process") && err(&refused).contains("remedy:"),
        "{}",
        err(&refused)
    );
    for change in [&["disk", "retire", "--yes"][..], &["disk", "rebuild", "--cluster", &"ab".repeat(16), "--yes"]] {
        let refused = scene.on_disk(change);
        assert_eq!(refused.status.code(), Some(78), "{change:?}: {}", err(&refused));
        assert!(err(&refused).contains("in use"), "{}", err(&refused));
    }
    // Looking needs no lock, and says so.
    let look = succeeded(scene.on_disk(&["inspect"]));
    assert!(look.starts_with("the disk is in use"), "{look}");
    assert!(succeeded(scene.on_disk(&["disk", "status"])).contains("yes, by a running process"));
    // A kill leaves a journal to replay, and is no damage.
    scene.cluster.chunkservers[0].kill();
    let before = contents(&scene.disk);
    let text = succeeded(scene.on_disk(&["fsck"]));
    assert!(text.contains("no damage") && text.contains("1000000 bytes, 245 blocks"), "{text}");
    let found = scene.json(&["fsck"]);
    assert!(found[0]["recovery"]["records"].as_u64().unwrap() > 0, "{found:?}");
    let slot = found.iter().find(|object| object["type"] == "slot").unwrap();
    assert_eq!((&slot["verdict"], &slot["len"]), (&"ok".into(), &1_000_000.into()));
    assert!(contents(&scene.disk) == before, "a byte or a time changed");
}

#[test]
fn a_flipped_byte_is_named_with_chunk_slot_and_block_and_nothing_changes() {
    let mut scene = Scene::new();
    scene.stop();
    let (slot, chunk) = scene.chunk();
    let file = scene.slot_file();
    [5 * 4096 + 100, 6 * 4096, 200 * 4096 + 1].into_iter().for_each(|at| flip(&file, at));
    let before = contents(&scene.disk);
    let output = scene.on_disk(&["fsck"]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let text = out(&output);
    let line = text.lines().find(|line| line.contains(&chunk)).unwrap_or_else(|| panic!("{text}"));
    assert!(line.starts_with(&format!("slot {slot} ")) && line.contains("damaged blocks"), "{line}");
    assert!(
        text.contains("\n             blocks 5 to 6: wrong checksum\n             block 200: wrong checksum\n"),
        "{text}"
    );
    assert!(text.contains("DAMAGED: 3 blocks do not verify") && text.contains("remedy:"), "{text}");
    assert_eq!(err(&output), "", "what is found is said once");

    let found = scene.json(&["fsck", "--chunk", &chunk, "--problems"]);
    let slots: Vec<&Value> = found.iter().filter(|object| object["type"] == "slot").collect();
    assert_eq!(slots.len(), 1);
    assert_eq!((&slots[0]["chunk"], &slots[0]["problems"][1]["first"]), (&chunk.into(), &200.into()));
    assert_eq!((&found.last().unwrap()["bad_blocks"], &found.last().unwrap()["damage"]), (&3.into(), &true.into()));
    let other = scene.on_disk(&["fsck", "--chunk", "1234"]);
    assert_eq!(other.status.code(), Some(66), "{}", err(&other));
    for look in [&["inspect"][..], &["inspect", "--slot", &slot.to_string()], &["inspect", "--journal", "0"]] {
        succeeded(scene.on_disk(look));
    }
    succeeded(scene.on_disk(&["disk", "retire"]));
    assert!(contents(&scene.disk) == before, "a byte or a time changed");
}

#[test]
fn several_disks_are_looked_at_and_one_that_cannot_be_does_not_hide_another() {
    let mut scene = Scene::new();
    scene.stop();
    let empty = scene.cluster.scratch().join("empty");
    fs::create_dir(&empty).unwrap();
    let both =
        hercules().arg("fsck").arg("--data-dir").arg(&empty).arg("--data-dir").arg(&scene.disk).output().unwrap();
    assert_eq!(both.status.code(), Some(78));
    assert!(out(&both).contains("no damage") && err(&both).contains("not the disk of a chunkserver"), "{both:?}");
    let missing = hercules().args(["fsck", "--data-dir", "no/such/folder"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(66), "{}", err(&missing));
    assert_eq!(hercules().arg("fsck").output().unwrap().status.code(), Some(2));
    assert!(fs::read_dir(&empty).unwrap().next().is_none(), "nothing is made");
}

#[test]
fn every_structure_is_shown_and_damage_does_not_stop_it() {
    let mut scene = Scene::new();
    scene.cluster.chunkservers[0].kill();
    // Records, before a start empties the journals.
    let records: Vec<Value> =
        [0, 1].iter().flat_map(|ring| scene.json(&["inspect", "--journal", &ring.to_string()])).collect();
    let kinds: Vec<&str> = records.iter().filter_map(|record| record["type"].as_str()).collect();
    assert!(kinds.contains(&"CREATE") && kinds.contains(&"APPEND"), "{kinds:?}");
    let append = records.iter().find(|record| record["type"] == "APPEND").unwrap();
    assert!(append["says"].as_str().unwrap().contains("bytes at 0"), "{append}");
    let ring = if scene.json(&["inspect", "--journal", "0"]).len() > 1 { "0" } else { "1" };
    let from = append["lsn"].to_string();
    let one = scene.json(&["inspect", "--journal", ring, "--from", &from, "--limit", "1"]);
    assert_eq!((one.len(), &one[0]["lsn"]), (2, &append["lsn"]));
    let offset = append["offset"].to_string();
    if append["offset"].as_u64().unwrap() % 4096 == 0 {
        let page = succeeded(scene.on_disk(&["inspect", "--page", &format!("journal/ring-000{ring}"), &offset]));
        assert!(page.contains("record") && page.contains("1 APPEND"), "{page}");
    }
    // A clean stop puts everything into the slots.
    scene.cluster.chunkservers[0].start_again();
    scene.stop();
    let (slot, chunk) = scene.chunk();
    let text = succeeded(scene.on_disk(&["inspect"]));
    for part in ["DISK A  valid", "JOURNAL", "SLOT", &chunk, "cluster_uuid", "0 NORMAL"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let shown = scene.json(&["inspect", "--chunk", &chunk]).remove(0);
    assert_eq!(shown["slot"], slot);
    assert_eq!(shown["headers"][0]["fields"]["durable_len"], 1_000_000);
    assert!(shown["children"].as_array().unwrap().iter().any(|child| child["name"] == "CRC 0"), "{shown}");
    assert_eq!(shown["crcs"][0]["blocks"], 245);

    // The header and the checksum page of one half, and DISK.B.
    let file = scene.slot_file();
    let copy = shown["children"].as_array().unwrap().iter().find(|child| child["name"] == "CRC 0").unwrap();
    let half = usize::from(copy["copy"] == "B");
    flip(&file, HALVES[1] + 100);
    flip(&file, HALVES[half] + CRC_0 + 70);
    flip(&scene.disk.join("DISK.B"), 70);
    let text = succeeded(scene.on_disk(&["inspect", "--slot", &slot.to_string()]));
    assert!(text.contains("HDR A  valid, counts") && text.contains("HDR B  wrong checksum"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("CRC 0") && line.ends_with("wrong checksum")), "{text}");
    assert!(succeeded(scene.on_disk(&["inspect"])).contains("DISK B  wrong checksum"));
    let at = format!("{:#x}", HALVES[1]);
    let page = succeeded(scene.on_disk(&["inspect", "--page", &format!("slots/{slot:08}"), &at]));
    assert!(page.contains("HDR, wrong checksum") && page.contains("durable_len"), "{page}");
    let data = succeeded(scene.on_disk(&["inspect", "--page", &format!("slots/{slot:08}"), "0"]));
    assert!(data.contains("data, nothing here says"), "{data}");
    let fsck = scene.on_disk(&["fsck"]);
    let text = out(&fsck);
    assert_eq!(fsck.status.code(), Some(1));
    for part in [
        "DAMAGE DISK.B: wrong checksum",
        "header B: wrong checksum",
        "CRC 0 page",
        "blocks 0 to 244: its checksum is lost",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let wrong = scene.on_disk(&["inspect", "--page", "etc/passwd", "0"]);
    assert!(err(&wrong).contains("no file of a disk"), "{}", err(&wrong));
    assert_eq!(scene.on_disk(&["inspect", "--slot", "999"]).status.code(), Some(78));
    assert_eq!(scene.on_disk(&["inspect", "--slot", "1", "--journal", "0"]).status.code(), Some(2));
}

#[test]
fn rebuild_brings_a_disk_back_and_everything_on_it_reads() {
    let mut scene = Scene::new();
    let cluster = scene.cluster.status()["cluster"].as_str().unwrap().to_owned();
    let server = scene.cluster.status()["servers"][0]["server"].as_u64().unwrap();
    scene.cluster.chunkservers[0].kill();
    let refused = scene.on_disk(&["disk", "rebuild", "--cluster", &cluster]);
    assert!(err(&refused).contains("DISK.A is good"), "{}", err(&refused));
    ["DISK.A", "DISK.B"].into_iter().for_each(|name| flip(&scene.disk.join(name), 70));
    let status = scene.on_disk(&["disk", "status"]);
    assert!(err(&status).contains("hercules disk rebuild"), "{}", err(&status));
    let fsck = scene.on_disk(&["fsck"]);
    assert!(out(&fsck).contains("hercules disk rebuild") && out(&fsck).contains("1000000 bytes"), "{}", out(&fsck));

    let before = contents(&scene.disk);
    let dry = succeeded(scene.on_disk(&["disk", "rebuild", "--cluster", &cluster]));
    assert!(dry.contains("nothing was changed; --yes writes DISK of server"), "{dry}");
    assert!(contents(&scene.disk) == before, "a byte or a time changed");
    let wrong = (server + 1).to_string();
    let refused = scene.on_disk(&["disk", "rebuild", "--cluster", &cluster, "--server", &wrong, "--yes"]);
    assert_eq!((refused.status.code(), contents(&scene.disk) == before), (Some(78), true), "{}", err(&refused));
    let done = succeeded(scene.on_disk(&["disk", "rebuild", "--cluster", &cluster, "--yes"]));
    assert!(done.contains("is written; start the server"), "{done}");

    let status = scene.json(&["disk", "status"]).remove(0);
    assert_eq!((&status["cluster"], &status["server"]), (&cluster.into(), &server.into()));
    assert_eq!(status["state"], "FENCED", "the next start verifies everything");
    scene.cluster.chunkservers[0].start_again();
    scene.cluster.wait_alive(1);
    let back = scene.cluster.scratch().join("back");
    scene.cluster.run(["get", "/file", back.to_str().unwrap()]);
    assert!(fs::read(back).unwrap() == scene.content);
    scene.stop();
    assert_eq!(scene.json(&["disk", "status"])[0]["state"], "NORMAL");
    assert!(succeeded(scene.on_disk(&["fsck"])).contains("no damage"));
}

#[test]
fn a_retired_disk_refuses_servers_until_it_is_put_back() {
    let mut scene = Scene::new();
    scene.stop();
    assert!(succeeded(scene.on_disk(&["disk", "retire"])).contains("NORMAL would become RETIRED; --yes does it"));
    succeeded(scene.on_disk(&["disk", "retire", "--yes"]));
    assert_eq!(scene.json(&["disk", "status"])[0]["state"], "RETIRED");
    let again = scene.on_disk(&["disk", "retire", "--yes"]);
    assert!(err(&again).contains("retired already") && again.status.code() == Some(78), "{}", err(&again));
    let mut server = scene.cluster.command();
    let server = server
        .args(["chunkserver", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"])
        .arg(&scene.disk);
    let refused = server.output().unwrap();
    assert!(err(&refused).contains("retired"), "{}", err(&refused));
    assert!(succeeded(scene.on_disk(&["fsck"])).contains("no damage"), "what is on it can be looked at");
    succeeded(scene.on_disk(&["disk", "retire", "--undo", "--yes"]));
    scene.cluster.chunkservers[0].start_again();
    scene.cluster.wait_alive(1);
    let back = scene.cluster.scratch().join("back");
    scene.cluster.run(["get", "/file", back.to_str().unwrap()]);
    assert!(fs::read(back).unwrap() == scene.content);
}
