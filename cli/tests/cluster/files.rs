//! Files in and out: by HTTP, by the command, by the library.

use std::collections::BTreeSet;

use bytes::Bytes;
use client::{Client, UploadOptions};
use wire::NamePath;
use wire::locate::Position;
use wire::upload::Precondition;

use super::http;
use super::rig::{Cluster, Plan, noise};

/// Enough for several chunks, an odd end included.
const LEN: usize = (150 << 20) + 12_345;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_chunks_goes_in_and_out_unchanged_by_every_door() {
    let cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    let content = noise(1, LEN);

    let answer = http::put(&gateway, "/fs/films/one.bin", &content).await.unwrap();
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("x-hercules-replicas"), Some("3"));
    assert_eq!(answer.header("x-hercules-durable"), Some("true"));
    let back = http::get(&gateway, "/fs/films/one.bin").await.unwrap();
    assert_eq!(back.status, 200);
    assert!(back.body == content, "the body read back differs");

    // A range over a chunk's end and over block borders.
    let (from, to) = ((64 << 20) - 1000, (64 << 20) + 5000);
    let range = format!("bytes={from}-{}", to - 1);
    let part = http::send(&gateway, "GET", "/fs/films/one.bin", &[("range", &range)], &[]).await.unwrap();
    assert_eq!(part.status, 206);
    assert_eq!(part.header("content-range"), Some(format!("bytes {from}-{}/{LEN}", to - 1).as_str()));
    assert!(part.body == content[from..to]);

    // Out by the command, and in again under another name.
    let file = cluster.dir.path().join("one.bin");
    let file = file.to_str().unwrap();
    cluster.hercules(&["get", "/films/one.bin", file]).await;
    assert!(std::fs::read(file).unwrap() == content);
    cluster.hercules(&["put", file, "/films/two.bin"]).await;
    let back = http::get(&gateway, "/fs/films/two.bin").await.unwrap();
    assert!(back.body == content);
    let listing = cluster.hercules(&["ls", "/films"]).await;
    assert!(listing.contains("one.bin") && listing.contains("two.bin"), "{listing}");

    replicas_agree(&cluster.client(), "/films/one.bin", 3).await;
    let chunks = cluster.hercules(&["stat", "--chunks", "--json", "/films/one.bin"]).await;
    let chunks: serde_json::Value = serde_json::from_str(&chunks).unwrap();
    let chunks = chunks["chunk_list"].as_array().unwrap();
    assert_eq!(chunks.len(), LEN.div_ceil(64 << 20));
    for chunk in chunks {
        let replicas = chunk["replicas"].as_array().unwrap();
        assert_eq!(replicas.len(), 3);
        let digests: BTreeSet<_> = replicas.iter().map(|replica| replica["digest"].as_str().unwrap()).collect();
        assert_eq!(digests.len(), 1, "{chunk}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_around_every_border_come_back_exactly() {
    let cluster = Cluster::start(Plan { gateway: false, ..Plan::default() }).await;
    let client = cluster.client();
    let mib = 1 << 20;
    for len in [0, 1, 4095, 4096, 4097, mib - 1, mib, mib + 1, (64 << 20) - 1, 64 << 20, (64 << 20) + 1] {
        let path = format!("/sizes/{len}");
        let content = noise(len as u64, len);
        upload(&client, &path, &content).await;
        let attr = client.stat(&NamePath::parse(&path).unwrap()).await.unwrap();
        assert_eq!(attr.len, len as u64);
        assert!(read(&client, &path).await == content, "{path} differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_file_is_old_or_new_and_never_a_mixture() {
    let cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    let (old, new) = (vec![b'o'; 3 << 20], vec![b'n'; 3 << 20]);
    http::put(&gateway, "/fs/page", &old).await.unwrap();
    let reader = tokio::spawn({
        let gateway = gateway.clone();
        async move {
            let mut seen = BTreeSet::new();
            for _ in 0..40 {
                let body = http::get(&gateway, "/fs/page").await.unwrap().body;
                assert_eq!(body.len(), 3 << 20);
                assert!(body.iter().all(|byte| *byte == body[0]), "a mixture was read");
                seen.insert(body[0]);
            }
            seen
        }
    });
    for turn in 0..10 {
        let answer = http::put(&gateway, "/fs/page", if turn % 2 == 0 { &new } else { &old }).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    assert!(!reader.await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_short_publishes_nothing() {
    use tokio::io::AsyncWriteExt;

    let cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    let mut stream = tokio::net::TcpStream::connect(&gateway).await.unwrap();
    let head = format!("PUT /fs/cut HTTP/1.1\r\nhost: {gateway}\r\ncontent-length: 5000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&noise(1, 3 << 20)).await.unwrap();
    drop(stream);
    http::put(&gateway, "/fs/whole", b"whole").await.unwrap();
    assert_eq!(http::get(&gateway, "/fs/cut").await.unwrap().status, 404);
    assert_eq!(http::get(&gateway, "/fs/whole").await.unwrap().body, b"whole");
}

/// Uploads through the library.
pub async fn upload(client: &Client, path: &str, content: &[u8]) {
    let path = NamePath::parse(path).unwrap();
    let options = UploadOptions { content_type: String::new(), precondition: Precondition::None, sha256: false };
    let mut upload = client.upload(&path, options).await.unwrap();
    for piece in content.chunks(1 << 20) {
        upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    upload.finish().await.unwrap();
}

/// Reads a whole file through the library.
pub async fn read(client: &Client, path: &str) -> Vec<u8> {
    let attr = client.stat(&NamePath::parse(path).unwrap()).await.unwrap();
    let mut stream = client.read(&attr, 0..attr.len);
    let mut out = Vec::new();
    while let Some(piece) = stream.next().await {
        out.extend_from_slice(&piece.unwrap());
    }
    out
}

/// Every replica of every chunk has the same length and digest, and there are `count` of each.
pub async fn replicas_agree(client: &Client, path: &str, count: usize) {
    let attr = client.stat(&NamePath::parse(path).unwrap()).await.unwrap();
    let locations = client.locations(attr.inode, Position::Index(0), 1000).await.unwrap();
    for location in &locations.items {
        assert_eq!(location.members.len(), count, "{location:?}");
        let mut seen = BTreeSet::new();
        for member in &location.members {
            let digest = client.digest(member, location.chunk).await.unwrap();
            seen.insert((digest.len, digest.digest));
        }
        assert_eq!(seen.len(), 1, "replicas of {} differ", location.chunk);
    }
}
