//! Record append: exactly once, at the offset that was answered, on every replica.

use std::collections::BTreeMap;

use bytes::Bytes;
use wire::NamePath;

use super::files::{read, replicas_agree};
use super::http;
use super::rig::{Cluster, Plan, noise};

fn record(writer: usize, turn: usize) -> Vec<u8> {
    let mut out = format!("<{writer}:{turn}>").into_bytes();
    out.extend(noise((writer * 1000 + turn) as u64, 10 + (writer * 7919 + turn * 104_729) % 9000));
    out
}

/// Finds every record exactly once, at its offset.
fn check(content: &[u8], acknowledged: &BTreeMap<u64, Vec<u8>>) {
    let mut at = 0;
    for (offset, record) in acknowledged {
        assert_eq!(*offset, at, "a hole or an overlap before {offset}");
        let end = *offset as usize + record.len();
        assert!(content[*offset as usize..end] == record[..], "record at {offset} differs");
        at = end as u64;
    }
    assert_eq!(at, content.len() as u64, "something that was never acknowledged stands in the file");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_find_each_record_once_at_the_offset_returned() {
    let cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    let path = NamePath::parse("/log").unwrap();
    let client = cluster.client();
    client.create(&path, true).await.unwrap();
    let mut tasks = Vec::new();
    for writer in 0..8 {
        let gateway = gateway.clone();
        // Half the writers have a client of their own, half share the gateway's.
        let client = cluster.client();
        let path = path.clone();
        tasks.push(tokio::spawn(async move {
            let mut out = Vec::new();
            for turn in 0..40 {
                let record = record(writer, turn);
                let offset = if writer % 2 == 0 {
                    client.append(&path, Bytes::from(record.clone())).await.unwrap().offset
                } else {
                    let answer = http::send(&gateway, "POST", "/fs/log?append", &[], &record).await.unwrap();
                    assert_eq!(answer.status, 200, "{answer:?}");
                    answer.json()["offset"].as_u64().unwrap()
                };
                out.push((offset, record));
            }
            out
        }));
    }
    let mut acknowledged = BTreeMap::new();
    for task in tasks {
        for (offset, record) in task.await.unwrap() {
            assert!(acknowledged.insert(offset, record).is_none(), "offset {offset} was answered twice");
        }
    }
    check(&read(&client, "/log").await, &acknowledged);
    replicas_agree(&client, "/log", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_go_on_exactly_once_while_a_chunkserver_dies() {
    let mut cluster = Cluster::start(Plan { gateway: false, ..Plan::default() }).await;
    let path = NamePath::parse("/log").unwrap();
    cluster.client().create(&path, true).await.unwrap();
    let mut tasks = Vec::new();
    for writer in 0..4 {
        let client = cluster.client();
        let path = path.clone();
        tasks.push(tokio::spawn(async move {
            let mut out = Vec::new();
            for turn in 0..150 {
                let record = record(writer, turn);
                let appended = client.append(&path, Bytes::from(record.clone())).await.unwrap();
                out.push((appended.offset, record));
            }
            out
        }));
    }
    let client = cluster.client();
    super::rig::wait_for("some records", || {
        let (client, path) = (client.clone(), path.clone());
        async move { client.stat(&path).await.is_ok_and(|attr| attr.len > 200_000) }
    })
    .await;
    cluster.chunkservers[0].kill();
    let mut acknowledged = BTreeMap::new();
    for task in tasks {
        for (offset, record) in task.await.unwrap() {
            assert!(acknowledged.insert(offset, record).is_none(), "offset {offset} was answered twice");
        }
    }
    assert_eq!(acknowledged.len(), 600);
    check(&read(&cluster.client(), "/log").await, &acknowledged);
}
