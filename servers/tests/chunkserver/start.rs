//! Starting, stopping, and what the master and the operator are told.

use servers::StartError;
use servers::chunkserver::{self, Config};
use wire::member::ReplicaState;
use wire::{ChunkHandle, ClusterId, Seq};

use crate::cluster::Cluster;
use crate::master::{FakeMaster, Told};
use crate::peer::{Op, pattern, read_all};

const CHUNK: ChunkHandle = ChunkHandle(12);

#[tokio::test]
async fn a_restart_keeps_the_id_and_every_acknowledged_byte_also_with_more_shards() {
    let mut cluster = Cluster::start(1, 1).await;
    let chunks: Vec<ChunkHandle> = (1..=6).map(ChunkHandle).collect();
    for chunk in &chunks {
        cluster.create(*chunk, &[0]).await;
        let bytes = pattern(chunk.0 as u8, 70_000);
        cluster.client(0, *chunk).await.append(&Op::new(*chunk, 1, 1, &bytes)).await.unwrap();
    }
    let server = cluster.servers[0].as_ref().unwrap().server;
    cluster.stop_server(0).await;
    cluster.shards = 3;
    cluster.start_server(0).await;
    assert_eq!(cluster.servers[0].as_ref().unwrap().server, server);
    for chunk in &chunks {
        let found = cluster.prepare(0, *chunk, 2).await.unwrap();
        assert_eq!((found.state, found.len, found.healthy), (ReplicaState::Rwr, 70_000, true));
        cluster.seal(0, *chunk, 0, &found).await.unwrap();
        cluster.confirm(0, *chunk, found.promised, found.len, found.digest).await.unwrap();
        let read = read_all(&mut cluster.client(0, *chunk).await, *chunk, 70_000, Seq(0)).await.unwrap();
        assert!(read == pattern(chunk.0 as u8, 70_000));
    }
    cluster.stop().await;
}

#[tokio::test]
async fn the_master_hears_the_inventory_when_it_asks_and_changes_as_they_come() {
    let mut cluster = Cluster::start(1, 2).await;
    let registered = cluster.master.registration(cluster.server(0));
    assert_eq!((registered.shards, registered.admin.is_empty()), (2, false));
    assert_ne!(registered.disk, [0; 16]);
    cluster.create(CHUNK, &[0]).await;
    let report = cluster.master.wait(|told| {
        let Told::Heartbeat(beat) = told else { return None };
        beat.chunks.iter().find(|report| report.chunk == CHUNK).map(|report| (report.state, beat.space))
    });
    let (state, space) = report.await;
    assert_eq!(state, ReplicaState::Open);
    assert!(space.total >= space.free && space.free > 0);
    cluster.stop_server(0).await;
    cluster.start_server(0).await;
    let page = cluster.master.wait(|told| {
        let Told::Heartbeat(beat) = told else { return None };
        beat.inventory.map(|place| (beat.chunks, place))
    });
    let (chunks, place) = page.await;
    assert!(place.first && place.last);
    assert_eq!(chunks.iter().map(|it| (it.chunk, it.state)).collect::<Vec<_>>(), [(CHUNK, ReplicaState::Rwr)]);
    cluster.stop().await;
}

#[tokio::test]
async fn a_master_that_goes_away_is_found_again() {
    let mut cluster = Cluster::start(1, 1).await;
    let address = cluster.master.address.clone();
    cluster.create(CHUNK, &[0]).await;
    let member = cluster.member(0);
    // Another one takes its place on the same port, and knows nobody.
    std::mem::replace(&mut cluster.master, FakeMaster::start(crate::cluster::CLUSTER).await).stop().await;
    let mut back = FakeMaster::start_at(&address, crate::cluster::CLUSTER).await;
    let server = back.wait(|told| if let Told::Heartbeat(beat) = told { Some(beat.server) } else { None }).await;
    assert_eq!((server, back.member(server).address), (member.server, member.address));
    cluster.stop().await;
}

fn refused(outcome: Result<chunkserver::Running, StartError>) -> StartError {
    match outcome {
        Ok(running) => panic!("server {} started", running.server),
        Err(error) => {
            assert!(!error.remedy.is_empty(), "{error}");
            error
        }
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_a_remedy() {
    let mut cluster = Cluster::start(1, 1).await;
    let config = cluster.config(0);
    let locked = refused(chunkserver::start(config.clone()).await);
    assert!(locked.what.contains(&config.data_dirs[0].display().to_string()), "{locked}");
    let taken = cluster.member(0).address;
    let port = refused(chunkserver::start(Config { listen: taken.clone(), ..config.clone() }).await);
    assert!(port.what.contains(&taken), "{port}");
    let little = refused(chunkserver::start(Config { memory_per_shard: 1 << 20, ..config.clone() }).await);
    assert_eq!(little.exit, StartError::CONFIG);
    let windows = Config { memory_per_shard: Config::MEMORY_MIN, ..config.clone() };
    assert!(refused(chunkserver::start(windows).await).remedy.contains("read less ahead"));
    refused(chunkserver::start(Config { read_ahead_max: 3 << 20, ..config.clone() }).await);
    refused(chunkserver::start(Config { shards: Some(0), ..config.clone() }).await);
    refused(chunkserver::start(Config { masters: Vec::new(), ..config.clone() }).await);

    cluster.stop_server(0).await;
    let foreign = FakeMaster::start(ClusterId([0xee; 16])).await;
    let other = refused(chunkserver::start(Config { masters: vec![foreign.address.clone()], ..config.clone() }).await);
    assert!(other.what.contains(&foreign.cluster.to_string()), "{other}");
    assert_eq!(other.exit, StartError::CONFIG);
    // Nothing was changed: it starts where it belongs.
    cluster.start_server(0).await;
    cluster.stop().await;
}

#[tokio::test]
async fn health_and_metrics_tell_how_it_is() {
    let cluster = Cluster::start(1, 2).await;
    cluster.create(CHUNK, &[0]).await;
    cluster.client(0, CHUNK).await.append(&Op::new(CHUNK, 1, 1, &[7; 5000])).await.unwrap();
    let health = cluster.admin(0, "/health").await;
    assert!(health.starts_with("HTTP/1.1 200 OK"), "{health}");
    assert!(
        health.contains(r#""service":"hercules-chunkserver""#) && health.contains(r#""status":"healthy""#),
        "{health}"
    );
    assert_eq!(cluster.metric(0, "hercules_appends_total").await, 1.0);
    assert_eq!(cluster.metric(0, "hercules_append_bytes_total").await, 5000.0);
    assert_eq!(cluster.metric(0, "hercules_chunks").await, 1.0);
    assert!(cluster.metric(0, "hercules_flushes_total").await >= 1.0);
    cluster.stop().await;
}
