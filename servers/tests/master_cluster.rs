//! The master over loopback, with scripted chunkservers: what must be logged before it is said, and
//! what must survive.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

#[path = "master_common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Client, Fake, config, digest, eventually, kind, start};
use servers::master;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::heartbeat::{Cluster, Liveness};
use wire::locate::{Intent, Locate, Location, Position};
use wire::member::{ChunkState, ReplicaState};
use wire::namespace::{CreateFile, Delete, List, Mkdir, Stat, Undelete};
use wire::report::{Finished, Report, Trouble};
use wire::upload::{AbortUpload, BeginUpload, Precondition, Publish, Splice};
use wire::{Epoch, InodeId, Kind, Seq, ServerId};

async fn fakes(master: SocketAddr, count: usize) -> Vec<Arc<Fake>> {
    let mut fakes = vec![];
    for _ in 0..count {
        fakes.push(Fake::start(master).await);
    }
    fakes
}

async fn upload(client: &mut Client) -> InodeId {
    let begin = BeginUpload { request: client.request(), path: String::new(), content_type: "text/plain".into() };
    client.ask(&begin).await.unwrap().inode
}

async fn tail(client: &mut Client, file: InodeId) -> Location {
    let locate = Locate { file, at: Position::Tail, intent: Intent::Append, count: 1 };
    let mut found = client.ask(&locate).await.unwrap();
    assert_eq!(found.items.len(), 1);
    found.items.remove(0)
}

/// The head's word that FINAL is committed, with this many entries.
async fn finish(client: &mut Client, fakes: &[Arc<Fake>], at: &Location, entries: u64) {
    for member in &at.members {
        let fake = fakes.iter().find(|fake| fake.id() == member.server).unwrap();
        fake.write(at.chunk, entries, entries);
    }
    let len = u32::try_from(entries * 10).unwrap();
    let (chunk, epoch, last_seq) = (at.chunk, at.epoch, Seq(entries));
    let dedup = vec![wire::DedupEntry { id: common::op(entries), chunk, offset: 0, len: 10 }];
    client.ask(&Finished { chunk, epoch, last_seq, len, digest: digest(entries), dedup }).await.unwrap();
}

async fn publish(
    client: &mut Client,
    inode: InodeId,
    path: &str,
    len: u64,
) -> Result<wire::namespace::Attr, wire::Fault> {
    let request = client.request();
    let precondition = Precondition::None;
    client.ask(&Publish { request, inode, path: path.into(), precondition, len, sha256: None }).await
}

async fn read(client: &mut Client, file: InodeId, at: Position) -> Vec<Location> {
    client.ask(&Locate { file, at, intent: Intent::Read, count: 1000 }).await.unwrap().items
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_opened_finished_published_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fakes = fakes(master.address, 3).await;
    let mut client = Client::connect(master.address).await;
    let inode = upload(&mut client).await;
    let mut len = 0;
    for entries in [4, 6] {
        let at = tail(&mut client, inode).await;
        assert_eq!((at.members.len(), at.state, at.epoch, at.start), (3, ChunkState::Open, Epoch(1), len));
        assert!(fakes.iter().all(|fake| fake.replica(at.chunk).is_some()), "given out only when all members have it");
        finish(&mut client, &fakes, &at, entries).await;
        len += entries * 10;
        eventually("all members are told of the seal", || async {
            fakes.iter().all(|fake| fake.replica(at.chunk).unwrap().state == ReplicaState::Sealed)
        })
        .await;
    }
    assert_eq!(kind(publish(&mut client, inode, "/a/b", len + 1).await), Kind::Invalid);
    assert_eq!(kind(client.ask(&Stat { path: "/a/b".into() }).await), Kind::NotFound);
    let attr = publish(&mut client, inode, "/a/b", len).await.unwrap();
    assert_eq!((attr.len, attr.chunks, attr.content_type.as_str()), (100, 2, "text/plain"));
    assert_eq!(client.ask(&Stat { path: "a//b/".into() }).await.unwrap(), attr);
    let found = read(&mut client, inode, Position::Offset(40)).await;
    assert_eq!(found.iter().map(|item| (item.index, item.start, item.len)).collect::<Vec<_>>(), [(1, 40, 60)]);
    assert_eq!(read(&mut client, inode, Position::Offset(39)).await.len(), 2);
    assert_eq!(read(&mut client, inode, Position::Offset(100)).await.len(), 0, "the exact end is past the last chunk");
    let second = fakes[0].replica(found[0].chunk).unwrap();
    assert_eq!(second.create.dedup.len(), 1, "the second chunk inherits the table of the first");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_seals_at_the_longest_and_the_writer_goes_on_in_a_chunk_that_inherits() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fakes = fakes(master.address, 4).await;
    let mut client = Client::connect(master.address).await;
    let inode = upload(&mut client).await;
    let at = tail(&mut client, inode).await;
    let chain: Vec<_> =
        at.members.iter().map(|member| fakes.iter().find(|fake| fake.id() == member.server).unwrap()).collect();
    chain[0].crash();
    chain[1].write(at.chunk, 5, 3);
    chain[2].write(at.chunk, 4, 3);
    let report = Report { chunk: at.chunk, epoch: at.epoch, trouble: Trouble::NoAnswer, suspect: chain[0].id() };
    client.ask(&report).await.unwrap();
    let next = tail(&mut client, inode).await;
    assert_ne!(next.chunk, at.chunk);
    assert_eq!(next.start, 50, "five entries, the longest");
    assert!(next.members.iter().all(|member| member.server != chain[0].id()), "not on the one that is gone");
    assert_eq!(chain[2].replica(at.chunk).unwrap().filled_from, Some(chain[1].id()));
    let create = fakes.iter().filter_map(|fake| fake.replica(next.chunk)).next().unwrap().create;
    assert!(create.dedup.iter().any(|entry| entry.id == common::op(5)), "the retry of the fifth is known there");
    let sealed = read(&mut client, inode, Position::Index(0)).await.remove(0);
    let holders: BTreeSet<_> = sealed.members.iter().map(|member| member.server).collect();
    assert_eq!(holders, BTreeSet::from([chain[1].id(), chain[2].id()]));
    assert_eq!((sealed.state, sealed.len, sealed.epoch), (ChunkState::Sealed, 50, Epoch(2)));
    // The one that was away comes back and fills what it lacks.
    chain[0].restart(master.address).await;
    eventually("the replica that missed the seal joins again", async || {
        let mut client = Client::connect(master.address).await;
        read(&mut client, inode, Position::Index(0)).await[0].members.len() == 3
    })
    .await;
    assert_eq!(chain[0].replica(at.chunk).unwrap().state, ReplicaState::Sealed);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_take_a_chunk_costs_a_handle_and_not_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fakes = fakes(master.address, 3).await;
    fakes[1].state.lock().unwrap().refuse_create = true;
    let mut client = Client::connect(master.address).await;
    let inode = upload(&mut client).await;
    let at = tail(&mut client, inode).await;
    let members: BTreeSet<_> = at.members.iter().map(|member| member.server).collect();
    assert_eq!(members, BTreeSet::from([fakes[0].id(), fakes[2].id()]));
    assert_eq!(at.index, 0, "the abandoned chunk is not in the file");
    eventually("what was abandoned is condemned", || async { !fakes[0].state.lock().unwrap().condemned.is_empty() })
        .await;
    assert!(fakes[0].state.lock().unwrap().condemned.iter().all(|(chunk, _)| *chunk != at.chunk));
    // One server is not enough for two copies.
    fakes[2].state.lock().unwrap().refuse_create = true;
    let other = upload(&mut client).await;
    let locate = Locate { file: other, at: Position::Tail, intent: Intent::Append, count: 1 };
    assert_eq!(kind(client.ask(&locate).await), Kind::Unavailable);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_appenders_of_one_file_share_one_opening() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fakes = fakes(master.address, 3).await;
    let mut client = Client::connect(master.address).await;
    let inode = upload(&mut client).await;
    let address = master.address;
    let waiting: Vec<_> = (0..32)
        .map(|_| tokio::spawn(async move { tail(&mut Client::connect(address).await, inode).await.chunk }))
        .collect();
    let mut chunks = BTreeSet::new();
    for each in waiting {
        chunks.insert(each.await.unwrap());
    }
    assert_eq!(chunks.len(), 1);
    assert_eq!(fakes[0].state.lock().unwrap().chunks.len(), 1);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_everything_an_open_chunk_is_sealed_once_two_members_have_said_what_they_have() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fakes = fakes(master.address, 3).await;
    let mut client = Client::connect(master.address).await;
    let inode = upload(&mut client).await;
    let at = tail(&mut client, inode).await;
    fakes.iter().for_each(|fake| fake.crash());
    fakes[0].write(at.chunk, 3, 3);
    fakes[1].write(at.chunk, 4, 3);
    fakes[2].write(at.chunk, 3, 3);
    drop(client);
    master.halt().await;

    let master = start(dir.path()).await;
    fakes[0].restart(master.address).await;
    eventually("it is asked", || async { fakes[0].state.lock().unwrap().prepares > 0 }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut client = Client::connect(master.address).await;
    let waiting = read(&mut client, inode, Position::Index(0)).await.remove(0);
    assert_eq!(waiting.state, ChunkState::Sealing, "a lone restarted member waits for a witness");
    fakes[1].restart(master.address).await;
    let next = tail(&mut client, inode).await;
    assert_eq!(next.start, 40);
    assert!(next.chunk > at.chunk, "handles are never used again");
    let terms = fakes[0].state.lock().unwrap().terms.clone();
    assert!(terms.first() < terms.last(), "each life of the master is a term: {terms:?}");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_master_alone_leaves_an_open_chunk_open() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fakes = fakes(master.address, 3).await;
    let mut client = Client::connect(master.address).await;
    let inode = upload(&mut client).await;
    let at = tail(&mut client, inode).await;
    drop(client);
    master.halt().await;
    let master = start(dir.path()).await;
    for fake in &fakes {
        fake.come_back(master.address).await;
    }
    let mut client = Client::connect(master.address).await;
    let again = tail(&mut client, inode).await;
    assert_eq!((again.chunk, again.epoch, again.state), (at.chunk, Epoch(1), ChunkState::Open));
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_chunk_of_a_dead_server_is_sealed_without_anybody_asking() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fakes = fakes(master.address, 3).await;
    let mut client = Client::connect(master.address).await;
    let inode = upload(&mut client).await;
    let at = tail(&mut client, inode).await;
    fakes.iter().for_each(|fake| fake.write(at.chunk, 2, 2));
    fakes[0].crash();
    eventually("the chunk is sealed on the others", || async {
        fakes[1].replica(at.chunk).unwrap().state == ReplicaState::Sealed
    })
    .await;
    let status = client.ask(&Cluster).await.unwrap();
    let dead = status.servers.iter().find(|server| server.server == fakes[0].id()).unwrap();
    assert_ne!(dead.liveness, Liveness::Alive);
    assert_eq!((status.open_chunks, status.degraded_chunks), (0, 1));
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_files_can_come_back_and_later_their_replicas_are_condemned_and_freed() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.trash_keep = Duration::from_secs(2);
    config.condemned_keep = Duration::from_millis(200);
    let master = master::start(config).await.unwrap();
    let fakes = fakes(master.address, 3).await;
    let mut client = Client::connect(master.address).await;
    let inode = upload(&mut client).await;
    let at = tail(&mut client, inode).await;
    finish(&mut client, &fakes, &at, 4).await;
    publish(&mut client, inode, "/a", 40).await.unwrap();
    let delete = Delete { request: client.request(), path: "/a".into(), recursive: false };
    client.ask(&delete).await.unwrap();
    let locate = Locate { file: inode, at: Position::Tail, intent: Intent::Append, count: 1 };
    assert_eq!(kind(client.ask(&locate).await), Kind::NotFound, "nobody appends to what is deleted");
    let undelete = Undelete { request: client.request(), path: "/a".into() };
    assert_eq!(client.ask(&undelete).await.unwrap().inode, inode);
    assert!(fakes[0].state.lock().unwrap().condemned.is_empty());
    let delete = Delete { request: client.request(), path: "/a".into(), recursive: false };
    client.ask(&delete).await.unwrap();
    eventually("all replicas are freed", || async {
        fakes.iter().all(|fake| fake.state.lock().unwrap().freed.iter().any(|(chunk, _)| *chunk == at.chunk))
    })
    .await;
    let status = client.ask(&Cluster).await.unwrap();
    assert_eq!((status.files, status.chunks), (0, 0));
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_condemned_before_all_known_servers_have_reported() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fakes = fakes(master.address, 3).await;
    eventually("safe mode ends", async || {
        !Client::connect(master.address).await.ask(&Cluster).await.unwrap().safe_mode
    })
    .await;
    let mut client = Client::connect(master.address).await;
    let inode = upload(&mut client).await;
    let at = tail(&mut client, inode).await;
    finish(&mut client, &fakes, &at, 4).await;
    drop(client);
    fakes.iter().for_each(|fake| fake.crash());
    master.halt().await;
    let master = start(dir.path()).await;
    for fake in &fakes[..2] {
        fake.come_back(master.address).await;
    }
    let mut client = Client::connect(master.address).await;
    let request = client.request();
    client.ask(&AbortUpload { request, inode }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(client.ask(&Cluster).await.unwrap().safe_mode);
    assert!(fakes[0].state.lock().unwrap().condemned.is_empty());
    fakes[2].come_back(master.address).await;
    eventually("now they are", || async { fakes.iter().all(|fake| !fake.state.lock().unwrap().condemned.is_empty()) })
        .await;
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_splice_replaces_chunks_in_one_step_and_only_at_the_version_it_was_made_for() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fakes = fakes(master.address, 3).await;
    let mut client = Client::connect(master.address).await;
    let file = upload(&mut client).await;
    for entries in [1, 2, 3] {
        let at = tail(&mut client, file).await;
        finish(&mut client, &fakes, &at, entries).await;
    }
    let attr = publish(&mut client, file, "/f", 60).await.unwrap();
    let before = read(&mut client, file, Position::Index(0)).await;
    let patch = upload(&mut client).await;
    for entries in [4, 5] {
        let at = tail(&mut client, patch).await;
        finish(&mut client, &fakes, &at, entries).await;
    }
    let mut splice =
        Splice { request: client.request(), file, version: attr.version - 1, index: 1, remove: 1, upload: patch };
    assert_eq!(kind(client.ask(&splice).await), Kind::Precondition);
    splice.version = attr.version;
    let after = client.ask(&splice).await.unwrap();
    assert_eq!((after.len, after.chunks), (130, 4));
    assert_eq!(client.ask(&splice).await.unwrap(), after, "a retry gets the first answer");
    let found = read(&mut client, file, Position::Index(0)).await;
    let starts: Vec<_> = found.iter().map(|item| item.start).collect();
    assert_eq!(starts, [0, 10, 50, 100]);
    assert_eq!((found[0].chunk, found[3].chunk), (before[0].chunk, before[2].chunk));
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_create_of_a_thousand_from_64_connections_survives() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    // The copy below must not meet a checkpoint half-way: a dying process does not copy.
    config.checkpoint_every = Duration::from_secs(3600);
    let master = master::start(config).await.unwrap();
    let address = master.address;
    let made = Arc::new(Mutex::new(vec![]));
    let creators: Vec<_> = (0..64)
        .map(|connection| {
            let made = Arc::clone(&made);
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                for number in 0..16 {
                    let path = format!("/d{}/f{connection}-{number}", connection % 5);
                    let create = CreateFile { request: client.request(), path: path.clone(), exclusive: true };
                    let attr = client.ask(&create).await.unwrap();
                    made.lock().unwrap().push((path, attr.inode));
                    assert_eq!(client.ask(&create).await.unwrap(), attr, "a retry is the same request");
                }
            })
        })
        .collect();
    // In the middle of it: what is in the files now is what kill -9 would leave.
    eventually("some are made", || async { made.lock().unwrap().len() > 300 }).await;
    let acknowledged = made.lock().unwrap().clone();
    let killed = tempfile::tempdir().unwrap();
    copy(dir.path(), killed.path());
    for creator in creators {
        creator.await.unwrap();
    }
    let all = made.lock().unwrap().clone();
    let inodes: BTreeSet<_> = all.iter().map(|(_, inode)| *inode).collect();
    assert_eq!(inodes.len(), 1024, "no inode twice");
    master.halt().await;
    for (dir, made) in [(killed.path(), &acknowledged), (dir.path(), &all)] {
        let master = start(dir).await;
        let mut client = Client::connect(master.address).await;
        for (path, inode) in made {
            assert_eq!(client.ask(&Stat { path: path.clone() }).await.unwrap().inode, *inode);
        }
        let create = CreateFile { request: client.request(), path: "/new".into(), exclusive: true };
        let new = client.ask(&create).await.unwrap().inode;
        assert!(made.iter().all(|(_, inode)| *inode != new), "numbers are never used again");
        master.stop().await;
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_over_the_wire_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let mut client = Client::connect(master.address).await;
    for path in ["/a/b.d", "/a/b.d"] {
        let attr = client.ask(&Mkdir { request: client.request(), path: path.into() }).await;
        assert!(attr.unwrap().is_dir);
    }
    let file = CreateFile { request: client.request(), path: "/a/f".into(), exclusive: false };
    let inode = client.ask(&file).await.unwrap().inode;
    let again = CreateFile { request: client.request(), ..file.clone() };
    assert_eq!(client.ask(&again).await.unwrap().inode, inode);
    let exclusive = CreateFile { request: client.request(), exclusive: true, ..file.clone() };
    assert_eq!(kind(client.ask(&exclusive).await), Kind::Exists);
    let cases = [
        ("/a", Kind::Conflict, "/a is a directory, not a file"),
        ("/a/f/g", Kind::Conflict, "/a/f is a file, not a directory"),
        ("/a/../b", Kind::Invalid, "`..` is not allowed in a path"),
        ("/___deleted__x", Kind::Invalid, "names starting with ___deleted__ are reserved"),
    ];
    for (path, kind, text) in cases {
        let fault = client.ask(&CreateFile { request: client.request(), path: path.into(), exclusive: false }).await;
        let fault = fault.unwrap_err();
        assert_eq!((fault.kind, fault.text.as_str()), (kind, text));
    }
    let missing = client.ask(&Stat { path: "/nope".into() }).await.unwrap_err();
    assert_eq!(missing.text, "path /nope is not found");
    let root = Delete { request: client.request(), path: "/".into(), recursive: true };
    assert_eq!(client.ask(&root).await.unwrap_err().text, "cannot remove root directory");
    let list = List { path: "./".into(), after: String::new(), limit: 1, recursive: true };
    let page = client.ask(&list).await.unwrap();
    assert_eq!((page.entries[0].path.as_str(), page.next.as_deref()), ("/a", Some("/a")));
    let unnamed = Mkdir { request: wire::RequestId::default(), path: "/x".into() };
    assert_eq!(kind(client.ask(&unnamed).await), Kind::Invalid);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_closes_one_connection_and_the_master_lives() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let mut good = Client::connect(master.address).await;
    for garbage in [vec![0x5a; 64], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n-------".to_vec()] {
        let mut stream = TcpStream::connect(master.address).await.unwrap();
        stream.write_all(&garbage).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed without a word");
    }
    assert!(good.ask(&Stat { path: "/".into() }).await.unwrap().is_dir);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let error = master::start(config(dir.path())).await.unwrap_err();
    assert!(error.what.contains("belongs to a running master"), "{error}");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut taken = config(elsewhere.path());
    taken.listen = master.address.to_string();
    let error = master::start(taken).await.unwrap_err();
    assert!(error.what.contains("cannot listen"), "{error}");
    let mut client = Client::connect(master.address).await;
    client.ask(&Mkdir { request: client.request(), path: "/a".into() }).await.unwrap();
    drop(client);
    master.stop().await;
    let mut wrong = config(elsewhere.path());
    wrong.min_ack_replicas = 4;
    assert!(master::start(wrong).await.is_err());
    // The log is gone and the checkpoint is there: half a state is no state.
    std::fs::rename(dir.path().join("oplog"), dir.path().join("moved")).unwrap();
    let error = master::start(config(dir.path())).await.unwrap_err();
    assert!(error.what.contains("the operation log is not"), "{error}");
    assert!(!dir.path().join("oplog").exists());
    std::fs::rename(dir.path().join("moved"), dir.path().join("oplog")).unwrap();
    // The checkpoint is gone and the log is whole: it is rebuilt.
    std::fs::remove_file(dir.path().join("checkpoint.db")).unwrap();
    let master = start(dir.path()).await;
    let mut client = Client::connect(master.address).await;
    assert!(client.ask(&Stat { path: "/a".into() }).await.unwrap().is_dir);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_tells_how_the_cluster_is() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let _fakes = fakes(master.address, 2).await;
    for (path, wants) in [
        ("/health", ["HTTP/1.1 200 OK", "\"service\":\"hercules-master\"", "\"status\":\"healthy\"", "\"alive\":2"]),
        (
            "/metrics",
            [
                "# TYPE hercules_master_requests_total counter",
                "hercules_master_requests_total{request=\"register\",result=\"ok\"} 4",
                "hercules_master_server_alive{server=\"1\"} 1",
                "hercules_master_log_flush_seconds_count",
            ],
        ),
    ] {
        let mut stream = TcpStream::connect(master.admin.unwrap()).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        for want in wants {
            assert!(reply.contains(want), "{want} in\n{reply}");
        }
    }
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_keeps_its_id_and_another_disk_cannot_take_it() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let fake = Fake::start(master.address).await;
    let id = fake.id();
    assert_ne!(id, ServerId(0));
    fake.restart(master.address).await;
    assert_eq!(fake.id(), id);
    let other = Fake::start(master.address).await;
    assert_ne!(other.id(), id);
    let mut client = Client::connect(master.address).await;
    let register = wire::heartbeat::Register {
        server: id,
        cluster: client.ask(&Cluster).await.unwrap().cluster,
        boot: 9,
        disk: [9; 16],
        address: "127.0.0.1:1".into(),
        admin: String::new(),
        shards: 1,
        zone: String::new(),
        version: String::new(),
    };
    assert_eq!(kind(client.ask(&register).await), Kind::Conflict);
    let foreign = wire::heartbeat::Register { cluster: wire::ClusterId([9; 16]), ..register.clone() };
    assert_eq!(kind(client.ask(&foreign).await), Kind::Conflict);
    let unheard = wire::heartbeat::Register { server: ServerId(77), ..register };
    assert_eq!(kind(client.ask(&unheard).await), Kind::Conflict);
    master.stop().await;
}

/// Servers of a new cluster start together. Two that register at the same moment were given one id,
/// and the one whose disk was formatted later could never come back.
#[tokio::test(flavor = "multi_thread")]
async fn fresh_disks_that_register_at_the_same_moment_get_an_id_each() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let address = master.address;
    let registrations = (1..=16).map(|port| {
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            let register = wire::heartbeat::Register {
                server: ServerId(0),
                cluster: wire::ClusterId::default(),
                boot: port,
                disk: [0; 16],
                address: format!("127.0.0.1:{port}"),
                admin: String::new(),
                shards: 1,
                zone: String::new(),
                version: String::new(),
            };
            loop {
                match client.ask(&register).await {
                    Ok(registered) => return registered.server,
                    Err(fault) => assert_eq!(fault.kind, Kind::Unavailable, "{fault}"),
                }
            }
        })
    });
    let mut ids = BTreeSet::new();
    for registration in registrations.collect::<Vec<_>>() {
        ids.insert(registration.await.unwrap());
    }
    assert_eq!(ids.len(), 16);
    master.stop().await;
}
