//! Writing in place: under the primary, on every replica, through kills and re-openings.

use bytes::Bytes;
use client::Client;
use wire::NamePath;
use wire::locate::{Location, Position};
use wire::member::ChunkState;

use super::files::{read, replicas_agree, upload};
use super::rig::{Cluster, Plan, noise, wait_for};

const CHUNK: usize = 64 << 20;

async fn chunks(client: &Client, path: &NamePath) -> Vec<Location> {
    let attr = client.stat(path).await.unwrap();
    client.locations(attr.inode, Position::Index(0), 100).await.unwrap().items
}

async fn sealed_again(client: &Client, path: &NamePath) {
    wait_for("all chunks to be sealed again", || async move {
        chunks(client, path).await.iter().all(|chunk| chunk.state == ChunkState::Sealed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_changes_its_bytes_in_place_and_the_chunk_is_sealed_again() {
    let cluster = Cluster::start(Plan { gateway: false, idle_seal: Some(1), ..Plan::default() }).await;
    let client = cluster.client();
    let path = NamePath::parse("/disk").unwrap();
    let mut want = noise(1, CHUNK + (3 << 20) + 100);
    upload(&client, "/disk", &want).await;
    let before = chunks(&client, &path).await;
    let writes = [(0, 1), (4095, 2), (CHUNK - 5000, 10_000), (CHUNK + 4096, 4096), (1 << 20, 3 << 20)];
    for (turn, (offset, len)) in writes.into_iter().enumerate() {
        let data = noise(50 + turn as u64, len);
        client.write_at(&path, offset as u64, Bytes::from(data.clone())).await.unwrap();
        want[offset..offset + len].copy_from_slice(&data);
        // Another client sees it at once, whichever replica it asks.
        assert!(read(&cluster.client(), "/disk").await == want, "{len} bytes at {offset}");
    }
    let during = chunks(&client, &path).await;
    let handles = |chunks: &[Location]| chunks.iter().map(|chunk| chunk.chunk).collect::<Vec<_>>();
    assert_eq!(handles(&during), handles(&before), "in place, not copied");
    sealed_again(&client, &path).await;
    let after = chunks(&client, &path).await;
    assert!(after.iter().zip(&before).all(|(after, before)| after.epoch > before.epoch && after.len == before.len));
    replicas_agree(&client, "/disk", 3).await;

    // Past the end, by the command; then a record, then inside again.
    let local = cluster.dir.path().join("piece");
    let data = noise(99, 5000);
    std::fs::write(&local, &data).unwrap();
    let offset = want.len() - 1000;
    cluster.hercules(&["write", "/disk", "--offset", &offset.to_string(), local.to_str().unwrap()]).await;
    want.truncate(offset);
    want.extend_from_slice(&data);
    let record = client.append(&path, Bytes::from_static(b"record")).await.unwrap();
    assert_eq!(record.offset, want.len() as u64);
    want.extend_from_slice(b"record");
    client.write_at(&path, record.offset + 1, Bytes::from_static(b"E")).await.unwrap();
    want[record.offset as usize + 1] = b'E';
    assert!(read(&client, "/disk").await == want);
    sealed_again(&client, &path).await;
    replicas_agree(&client, "/disk", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_the_death_of_a_member_and_of_everybody() {
    let mut cluster = Cluster::start(Plan { gateway: false, idle_seal: Some(1), ..Plan::default() }).await;
    let client = cluster.client();
    let path = NamePath::parse("/disk").unwrap();
    let mut want = noise(2, 2 << 20);
    upload(&client, "/disk", &want).await;
    for turn in 0..60_u64 {
        let len = 1 + (turn as usize * 7919) % 20_000;
        let offset = (turn as usize * 104_729) % (want.len() - len);
        if turn == 20 {
            cluster.chunkservers[1].kill();
        }
        if turn == 40 {
            cluster.kill_all();
            cluster.start_all().await;
        }
        let data = noise(1000 + turn, len);
        client.write_at(&path, offset as u64, Bytes::from(data.clone())).await.unwrap();
        want[offset..offset + len].copy_from_slice(&data);
    }
    assert!(read(&cluster.client(), "/disk").await == want, "an acknowledged write is missing");
    cluster.kill_all();
    cluster.start_all().await;
    sealed_again(&client, &path).await;
    assert!(read(&cluster.client(), "/disk").await == want, "an acknowledged write did not survive");
}
