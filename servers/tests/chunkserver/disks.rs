//! Several disks in one server: where chunks go, and what remains when one of them fails.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use servers::StartError;
use servers::chunkserver::{self, Config};
use wire::chain::{Condemn, Free};
use wire::hello::Role;
use wire::member::ReplicaState;
use wire::{ChunkHandle, Kind, Reason, Seq, Term};

use crate::cluster::Cluster;
use crate::master::{FakeMaster, Told};
use crate::peer::{Op, pattern, read_all};

const CHUNKS: u64 = 24;

fn content(chunk: ChunkHandle) -> Vec<u8> {
    pattern(chunk.0 as u8, 20_000)
}

/// Makes chunks with content, alone on a server, and seals them: they lie in their slots.
async fn fill(cluster: &Cluster, index: usize, chunks: impl Iterator<Item = u64>) -> Vec<ChunkHandle> {
    let chunks: Vec<ChunkHandle> = chunks.map(ChunkHandle).collect();
    for chunk in &chunks {
        cluster.create(*chunk, &[index]).await;
        cluster.client(index, *chunk).await.append(&Op::new(*chunk, 1, 1, &content(*chunk))).await.unwrap();
        seal(cluster, index, *chunk).await;
    }
    chunks
}

async fn seal(cluster: &Cluster, index: usize, chunk: ChunkHandle) {
    let found = cluster.prepare(index, chunk, 2).await.unwrap();
    cluster.seal(index, chunk, index, &found).await.unwrap();
    cluster.confirm(index, chunk, found.promised, found.len, found.digest).await.unwrap();
}

/// Which of these disks hold the chunk's first block, byte for byte.
fn holders(roots: &[PathBuf], chunk: ChunkHandle) -> Vec<usize> {
    let block = &content(chunk)[..4096];
    let holds = |root: &Path| {
        let slots = std::fs::read_dir(root.join("slots")).into_iter().flatten().flatten();
        let first_block = |path: PathBuf| {
            let mut bytes = vec![0; 4096];
            std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, 0).is_ok().then_some(bytes)
        };
        slots.filter_map(|slot| first_block(slot.path())).any(|bytes| bytes == block)
    };
    (0..roots.len()).filter(|disk| holds(&roots[*disk])).collect()
}

async fn is_read(cluster: &Cluster, chunk: ChunkHandle) -> Result<(), wire::Fault> {
    let read = read_all(&mut cluster.client(0, chunk).await, chunk, 20_000, Seq(0)).await?;
    assert!(read == content(chunk), "wrong bytes of {chunk}");
    Ok(())
}

#[tokio::test]
async fn chunks_spread_over_the_disks_each_on_one_and_are_found_after_a_restart() {
    let mut cluster = Cluster::start_with(1, 2, 3).await;
    let chunks = fill(&cluster, 0, 1..=CHUNKS).await;
    let roots: Vec<PathBuf> = (0..3).map(|disk| cluster.disk(0, disk)).collect();
    cluster.stop_server(0).await;
    let mut counts = BTreeMap::<usize, u32>::new();
    for chunk in &chunks {
        let holders = holders(&roots, *chunk);
        assert_eq!(holders.len(), 1, "a chunk lives on one disk");
        *counts.entry(holders[0]).or_default() += 1;
    }
    assert_eq!(counts.len(), 3, "{counts:?}");
    cluster.start_server(0).await;
    for chunk in &chunks {
        is_read(&cluster, *chunk).await.unwrap();
    }
    assert_eq!(cluster.metric(0, "hercules_chunks").await, CHUNKS as f64);
    cluster.stop().await;
}

/// Makes writes to a file fail as a broken disk does; `None` where that is not possible.
struct Broken(PathBuf);

impl Broken {
    fn new(path: PathBuf) -> Option<Self> {
        let done = Command::new("chattr").arg("+i").arg(&path).output().is_ok_and(|done| done.status.success());
        if !done {
            println!("SKIPPED: chattr +i does not work here");
        }
        done.then_some(Self(path))
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        // Without it the folder cannot be removed.
        let _ = Command::new("chattr").arg("-i").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_disk_that_fails_while_running_leaves_the_others_serving() {
    let mut cluster = Cluster::start_with(1, 1, 2).await;
    let chunks = fill(&cluster, 0, 1..=CHUNKS).await;
    let roots = [cluster.disk(0, 0), cluster.disk(0, 1)];
    let (mut lost, kept): (Vec<_>, Vec<_>) = chunks.into_iter().partition(|chunk| holders(&roots, *chunk) == [1]);
    let victim = lost.pop().unwrap();
    assert!(!lost.is_empty() && !kept.is_empty());
    let Some(broken) = Broken::new(roots[1].join("journal/ring-0000")) else { return cluster.stop().await };

    // The first command that needs the journal of that disk meets the error.
    cluster.master.forget();
    let condemn = Condemn { term: Term(1), chunk: victim, authority: 5, now_unix: 1 };
    let fault = cluster.dial(0, Role::Master, victim).await.call(&condemn).await.unwrap_err();
    assert_eq!((fault.kind, fault.reason), (Kind::Unavailable, Reason::Disk));
    for chunk in &lost {
        let fault = is_read(&cluster, *chunk).await.unwrap_err();
        assert_eq!((fault.kind, fault.reason), (Kind::Unavailable, Reason::Disk), "the reader goes to another replica");
    }
    for chunk in &kept {
        is_read(&cluster, *chunk).await.unwrap();
    }
    // The master hears of every replica there, and of the space that is left.
    let mut told = BTreeSet::new();
    let all = cluster.master.wait(|heard| {
        let Told::Heartbeat(beat) = heard else { return None };
        let damaged = beat.chunks.iter().filter(|report| report.damaged && lost.contains(&report.chunk));
        told.extend(damaged.map(|report| report.chunk));
        (told.len() == lost.len()).then_some(())
    });
    all.await;
    let health = cluster.admin(0, "/health").await;
    assert!(health.starts_with("HTTP/1.1 200") && health.contains(r#""status":"degraded""#), "{health}");
    assert!(health.contains(r#""state":"failed""#) && health.contains(r#""cause":"#), "{health}");
    assert!(health.contains(&roots[1].display().to_string()), "{health}");
    // New chunks go to the disk that is left.
    for chunk in fill(&cluster, 0, 100..112).await {
        assert_eq!(holders(&roots, chunk), [0]);
        is_read(&cluster, chunk).await.unwrap();
    }
    cluster.stop_server(0).await;

    // Repaired and started again: everything is there.
    drop(broken);
    cluster.start_server(0).await;
    for chunk in lost.iter().chain(&kept) {
        is_read(&cluster, *chunk).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test]
async fn when_all_disks_have_failed_the_server_says_so() {
    let cluster = Cluster::start_with(1, 1, 2).await;
    let chunks = fill(&cluster, 0, 1..=CHUNKS).await;
    let mut broken = Vec::new();
    for disk in 0..2 {
        match Broken::new(cluster.disk(0, disk).join("journal/ring-0000")) {
            Some(it) => broken.push(it),
            None => return cluster.stop().await,
        }
    }
    for chunk in &chunks {
        let condemn = Condemn { term: Term(1), chunk: *chunk, authority: 5, now_unix: 1 };
        assert!(cluster.dial(0, Role::Master, *chunk).await.call(&condemn).await.is_err());
    }
    // The shard looks at its disks four times a second.
    let health = cluster.wait_health(0, |health| health.starts_with("HTTP/1.1 503")).await;
    assert!(health.contains(r#""status":"disk failed""#), "{health}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_server_starts_without_a_disk_that_is_missing_and_denies_nothing_that_may_be_on_it() {
    let mut cluster = Cluster::start_with(1, 2, 2).await;
    let chunks = fill(&cluster, 0, 1..=CHUNKS).await;
    let roots = [cluster.disk(0, 0), cluster.disk(0, 1)];
    cluster.stop_server(0).await;
    let (lost, kept): (Vec<_>, Vec<_>) = chunks.into_iter().partition(|chunk| holders(&roots, *chunk) == [1]);
    let away = cluster.root(0).join("unmounted");
    std::fs::rename(&roots[1], &away).unwrap();
    cluster.start_server(0).await;
    assert!(!roots[1].exists(), "no second disk is begun in its place");
    for chunk in &kept {
        is_read(&cluster, *chunk).await.unwrap();
    }
    let told = cluster.master.wait(|told| {
        let Told::Heartbeat(beat) = told else { return None };
        beat.inventory.map(|_| beat.chunks.iter().map(|report| report.chunk).collect::<Vec<_>>())
    });
    assert_eq!(told.await, kept, "the inventory has what is there");
    for chunk in &lost {
        assert_eq!(is_read(&cluster, *chunk).await.unwrap_err().reason, Reason::Disk);
        let mut master = cluster.dial(0, Role::Master, *chunk).await;
        let condemn = Condemn { term: Term(1), chunk: *chunk, authority: 5, now_unix: 1 };
        assert_eq!(master.call(&condemn).await.unwrap_err().reason, Reason::Disk, "not done already");
        let free = Free { term: Term(1), chunk: *chunk, authority: 5 };
        assert_eq!(master.call(&free).await.unwrap_err().reason, Reason::Disk);
        assert_eq!(cluster.prepare(0, *chunk, 9).await.unwrap_err().reason, Reason::Disk);
    }
    let health = cluster.admin(0, "/health").await;
    assert!(health.contains("is missing") && health.contains(r#""status":"degraded""#), "{health}");
    cluster.stop_server(0).await;

    std::fs::rename(&away, &roots[1]).unwrap();
    cluster.start_server(0).await;
    for chunk in lost.iter().chain(&kept) {
        is_read(&cluster, *chunk).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_fresh_disk_joins_those_of_a_known_server() {
    let mut cluster = Cluster::start_with(1, 1, 2).await;
    let chunks = fill(&cluster, 0, 1..=6).await;
    cluster.stop_server(0).await;
    // Replaced by an empty one.
    std::fs::remove_dir_all(cluster.disk(0, 1)).unwrap();
    std::fs::create_dir(cluster.disk(0, 1)).unwrap();
    cluster.start_server(0).await;
    assert_eq!(cluster.servers[0].as_ref().unwrap().server, cluster.server(0));
    let health = cluster.admin(0, "/health").await;
    assert!(health.contains(r#""status":"healthy""#), "{health}");
    let gone = {
        let mut gone = 0;
        for chunk in &chunks {
            gone += u32::from(is_read(&cluster, *chunk).await.is_err_and(|fault| fault.reason == Reason::UnknownChunk));
        }
        gone
    };
    assert!(gone > 0, "they were on the disk that was replaced");
    cluster.stop().await;
}

/// Copies a disk as it is.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test]
async fn of_two_copies_of_a_chunk_the_newer_is_served_and_nothing_is_deleted() {
    let mut cluster = Cluster::start_with(1, 1, 2).await;
    // One chunk on disk 0 is open in epoch 1, and its disk is copied.
    let roots = [cluster.disk(0, 0), cluster.disk(0, 1)];
    let mut chosen = None;
    for chunk in (1..=CHUNKS).map(ChunkHandle) {
        cluster.create(chunk, &[0]).await;
        cluster.client(0, chunk).await.append(&Op::new(chunk, 1, 1, &content(chunk))).await.unwrap();
        if holders(&roots, chunk) == [0] {
            chosen = Some(chunk);
            break;
        }
    }
    let chunk = chosen.unwrap();
    cluster.stop_server(0).await;
    let old = cluster.root(0).join("old");
    copy(&roots[0], &old);
    cluster.start_server(0).await;
    seal(&cluster, 0, chunk).await;
    cluster.stop_server(0).await;
    // By some accident the old copy comes back in the place of the other disk.
    std::fs::rename(&roots[1], cluster.root(0).join("away")).unwrap();
    std::fs::rename(&old, &roots[1]).unwrap();
    for _ in 0..2 {
        cluster.start_server(0).await;
        is_read(&cluster, chunk).await.unwrap();
        let inventory = cluster.master.wait(|told| {
            let Told::Heartbeat(beat) = told else { return None };
            beat.inventory.map(|_| beat.chunks)
        });
        let reports: Vec<_> = inventory.await.into_iter().filter(|report| report.chunk == chunk).collect();
        assert_eq!(reports.iter().map(|report| report.state).collect::<Vec<_>>(), [ReplicaState::Sealed]);
        assert!(cluster.metric(0, "hercules_shadow_chunks").await >= 1.0);
        assert_eq!(holders(&roots, chunk), [0, 1], "both are kept");
        cluster.stop_server(0).await;
    }
    cluster.stop().await;
}

fn refused(outcome: Result<chunkserver::Running, StartError>) -> StartError {
    match outcome {
        Ok(running) => panic!("server {} started", running.server),
        Err(error) => error,
    }
}

#[tokio::test]
async fn disks_of_several_servers_or_the_same_disk_twice_are_refused_by_name() {
    let mut cluster = Cluster::start(2, 1).await;
    let roots = [cluster.root(0), cluster.root(1)];
    cluster.stop_server(0).await;
    let config = cluster.config(0);
    let more = Config { memory_per_shard: Config::MEMORY_DEFAULT, ..config };
    let in_use = refused(chunkserver::start(Config { data_dirs: roots.to_vec(), ..more.clone() }).await);
    assert!(in_use.what.contains(&roots[1].display().to_string()), "a disk in use is not a broken one: {in_use}");
    cluster.stop_server(1).await;
    let mixed = refused(chunkserver::start(Config { data_dirs: roots.to_vec(), ..more.clone() }).await);
    for root in &roots {
        assert!(mixed.what.contains(&root.display().to_string()), "{mixed}");
    }
    assert!(mixed.what.contains("server 1") && mixed.what.contains("server 2"), "{mixed}");
    let twice = vec![roots[0].clone(), roots[0].join("../").join(roots[0].file_name().unwrap())];
    let twice = refused(chunkserver::start(Config { data_dirs: twice, ..more.clone() }).await);
    assert!(twice.what.contains("twice"), "{twice}");
    refused(chunkserver::start(Config { data_dirs: Vec::new(), ..more.clone() }).await);
    let foreign = FakeMaster::start(wire::ClusterId([0xee; 16])).await;
    refused(chunkserver::start(Config { masters: vec![foreign.address.clone()], ..more }).await);
    // Nothing was changed.
    cluster.start_server(0).await;
    cluster.start_server(1).await;
    cluster.stop().await;
}
