//! Whatever is killed, whatever was acknowledged is there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use client::UploadOptions;
use wire::NamePath;
use wire::locate::Position;
use wire::upload::Precondition;

use super::files::{read, replicas_agree, upload};
use super::http;
use super::rig::{Cluster, Plan, noise, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_survives_the_death_of_a_chunkserver_and_goes_on_with_the_living() {
    let mut cluster = Cluster::start(Plan { gateway: false, ..Plan::default() }).await;
    let client = cluster.client();
    let content = noise(7, 200 << 20);
    let path = NamePath::parse("/big").unwrap();
    let options = UploadOptions { content_type: String::new(), precondition: Precondition::None, sha256: false };
    let mut upload = client.upload(&path, options).await.unwrap();
    for (index, piece) in content.chunks(1 << 20).enumerate() {
        if index == 80 {
            cluster.chunkservers[1].kill();
        }
        upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    let attr = upload.finish().await.unwrap();
    assert_eq!(attr.len, content.len() as u64);
    assert!(read(&client, "/big").await == content, "bytes differ after the death of a replica");

    let locations = client.locations(attr.inode, Position::Index(0), 100).await.unwrap();
    let last = locations.items.last().unwrap();
    let addresses: BTreeSet<&str> = last.members.iter().map(|member| member.address.as_str()).collect();
    let living: BTreeSet<String> =
        [0, 2].into_iter().map(|index: usize| cluster.chunkservers[index].address()).collect();
    assert_eq!(addresses, living.iter().map(String::as_str).collect(), "new chunks sit on the living servers");

    // With one of three down, new files go in and out as well.
    super::files::upload(&client, "/after", &content[..3 << 20]).await;
    assert!(read(&client, "/after").await == content[..3 << 20]);

    // It comes back: everything is still right, whoever answers.
    cluster.start_all().await;
    assert!(read(&cluster.client(), "/big").await == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_is_there_after_every_process_was_killed() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    let big = noise(3, (70 << 20) + 17);
    let small = noise(4, 100);
    assert_eq!(http::put(&gateway, "/fs/big", &big).await.unwrap().status, 201);
    assert_eq!(http::put(&gateway, "/fs/small", &small).await.unwrap().status, 201);
    let mut log = Vec::new();
    for turn in 0..20_u64 {
        let record = noise(turn, 1000);
        let answer = http::send(&gateway, "POST", "/fs/log?append", &[], &record).await.unwrap();
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.json()["offset"], log.len());
        log.extend_from_slice(&record);
    }
    cluster.kill_all();
    cluster.start_all().await;
    let gateway = cluster.gateway();
    assert!(http::get(&gateway, "/fs/big").await.unwrap().body == big);
    assert!(http::get(&gateway, "/fs/small").await.unwrap().body == small);
    wait_for("the log to be readable", || {
        let gateway = gateway.clone();
        async move { http::get(&gateway, "/fs/log").await.is_ok_and(|answer| answer.status == 200) }
    })
    .await;
    assert!(http::get(&gateway, "/fs/log").await.unwrap().body == log, "acknowledged records are missing");
    let answer = http::send(&gateway, "POST", "/fs/log?append", &[], b"more").await.unwrap();
    assert_eq!(answer.json()["offset"], log.len(), "{answer:?}");
    replicas_agree(&cluster.client(), "/big", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_acknowledged_by_a_master_that_was_killed_exist_and_nothing_is_named_twice() {
    let mut cluster = Cluster::start(Plan { gateway: false, ..Plan::default() }).await;
    let done = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for worker in 0..50 {
        let client = cluster.client();
        for turn in 0..20 {
            let (client, done) = (client.clone(), Arc::clone(&done));
            tasks.push(tokio::spawn(async move {
                let path = NamePath::parse(&format!("/many/{worker}/{turn}")).unwrap();
                let created = client.create(&path, true).await;
                done.fetch_add(1, Ordering::Relaxed);
                created.map(|attr| (path, attr.inode))
            }));
        }
    }
    while done.load(Ordering::Relaxed) < 100 {
        tokio::task::yield_now().await;
    }
    cluster.master.kill();
    let before = done.load(Ordering::Relaxed);
    cluster.master.start();
    let mut acknowledged = Vec::new();
    for task in tasks {
        // What was in flight is repeated by the client with the same request number.
        acknowledged.push(task.await.unwrap().unwrap());
    }
    println!("{before} of 1,000 creates were answered before the kill");
    assert_eq!(acknowledged.len(), 1000);
    let client = cluster.client();
    let mut inodes = BTreeSet::new();
    for (path, inode) in &acknowledged {
        let attr = client.stat(path).await.unwrap();
        assert_eq!(attr.inode, *inode, "{path} is another file than was acknowledged");
        assert!(inodes.insert(*inode), "inode {inode} was given out twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunk_handles_are_never_used_twice_across_deletes_and_restarts_of_the_master() {
    let mut cluster = Cluster::start(Plan { gateway: false, ..Plan::default() }).await;
    let mut handles = BTreeSet::new();
    for round in 0..3 {
        let client = cluster.client();
        for index in 0..5 {
            let path = format!("/round{round}/{index}");
            upload(&client, &path, &noise(index, 5000)).await;
            let attr = client.stat(&NamePath::parse(&path).unwrap()).await.unwrap();
            for location in client.locations(attr.inode, Position::Index(0), 10).await.unwrap().items {
                assert!(handles.insert(location.chunk), "handle {} was used twice", location.chunk);
            }
            client.delete(&NamePath::parse(&path).unwrap(), false).await.unwrap();
        }
        cluster.master.kill();
        cluster.start_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_server_exits_with_zero_and_everything_is_there_afterwards() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    let content = noise(5, 10 << 20);
    http::put(&gateway, "/fs/kept", &content).await.unwrap();
    for server in cluster.servers_mut() {
        let name = server.name.clone();
        assert_eq!(server.terminate(), Some(0), "{name}");
    }
    cluster.start_all().await;
    assert!(http::get(&cluster.gateway(), "/fs/kept").await.unwrap().body == content);
}
