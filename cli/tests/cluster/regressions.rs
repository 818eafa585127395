//! What went wrong in the original, and must not here. Each test begins with its story; all of them
//! go through the original's own HTTP API.

use serde_json::json;

use super::http::{self, Answer};
use super::rig::{Cluster, Plan, noise};

const CHUNK: usize = 64 << 20;

async fn call(gateway: &str, method: &str, route: &str, body: &serde_json::Value) -> Answer {
    let target = format!("/api/v1/{route}");
    let body = body.to_string();
    http::send(gateway, method, &target, &[("content-type", "application/json")], body.as_bytes()).await.unwrap()
}

async fn create(gateway: &str, path: &str) -> Answer {
    call(gateway, "POST", "create", &json!({ "path": path })).await
}

async fn raw(gateway: &str, method: &str, route: &str, body: &[u8]) -> Answer {
    http::send(gateway, method, &format!("/api/v1/{route}"), &[], body).await.unwrap()
}

async fn content(gateway: &str, path: &str) -> Vec<u8> {
    let answer = http::get(gateway, &format!("/fs{path}")).await.unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.head);
    answer.body
}

/// A read of 4,096 bytes from a file of 29 gave 29 zeros and said 4,096.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_read_returns_the_bytes_that_are_there() {
    let cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    let text = b"twenty-nine bytes of content!";
    assert_eq!(create(&gateway, "/short.txt").await.status, 200);
    let answer = raw(&gateway, "POST", "write?path=/short.txt&offset=0", text).await;
    assert_eq!(answer.json()["data"]["bytes_written"], 29);
    let answer = raw(&gateway, "GET", "read?path=/short.txt", &[]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, text);
    assert_eq!(answer.header("x-bytes-read"), Some("29"));
}

/// Every write landed at byte 0 of its chunk, whatever its offset.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_at_an_offset_keeps_the_rest() {
    let cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    create(&gateway, "/w").await;
    let mut want = noise(1, 10_000);
    assert_eq!(raw(&gateway, "POST", "write?path=/w&offset=0", &want).await.status, 200);
    let patch = noise(2, 5_000);
    let answer = raw(&gateway, "POST", "write?path=/w&offset=100", &patch).await;
    assert_eq!(answer.json()["data"], json!({ "bytes_written": 5000, "offset": 100 }), "{answer:?}");
    want[100..5100].copy_from_slice(&patch);
    assert!(content(&gateway, "/w").await == want);
    // Across the end: the file grows.
    assert_eq!(raw(&gateway, "POST", "write?path=/w&offset=9000", &patch).await.status, 200);
    want.truncate(9000);
    want.extend_from_slice(&patch);
    assert!(content(&gateway, "/w").await == want);
    // Past the end: refused, nothing changed.
    let answer = raw(&gateway, "POST", "write?path=/w&offset=20000", b"x").await;
    assert!(answer.status >= 400, "{answer:?}");
    assert!(content(&gateway, "/w").await == want);
}

/// An append that crossed 64 MiB, or met an exactly full chunk, failed for ever; overwrites in a full
/// chunk went to the next one and were called a success.
#[tokio::test(flavor = "multi_thread")]
async fn appends_and_writes_work_at_and_across_the_border_of_a_chunk() {
    let cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    create(&gateway, "/border").await;
    let mut want = noise(1, CHUNK - 10);
    assert_eq!(raw(&gateway, "POST", "write?path=/border&offset=0", &want).await.status, 200);
    let crossing = noise(2, 100);
    let answer = raw(&gateway, "PATCH", "append?path=/border", &crossing).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["data"], json!({ "bytes_added": 100, "offset": CHUNK - 10 }));
    want.extend_from_slice(&crossing);
    for turn in 0..3 {
        let more = noise(10 + turn, 4_000);
        assert_eq!(raw(&gateway, "PATCH", "append?path=/border", &more).await.status, 200);
        want.extend_from_slice(&more);
    }
    assert!(content(&gateway, "/border").await == want);

    create(&gateway, "/full").await;
    let mut want = noise(3, CHUNK);
    assert_eq!(raw(&gateway, "POST", "write?path=/full&offset=0", &want).await.status, 200);
    let tail = noise(4, 1_000_000);
    let answer = raw(&gateway, "PATCH", "append?path=/full", &tail).await;
    assert_eq!(answer.json()["data"]["offset"], CHUNK, "{answer:?}");
    want.extend_from_slice(&tail);
    let inside = noise(5, 3_000);
    assert_eq!(raw(&gateway, "POST", "write?path=/full&offset=5000", &inside).await.status, 200);
    want[5000..8000].copy_from_slice(&inside);
    assert!(content(&gateway, "/full").await == want);
    super::files::replicas_agree(&cluster.client(), "/full", 3).await;
}

/// Creating a file below a file crashed the master, and its restart deleted every chunk.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_below_a_file_is_refused_and_the_master_lives() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    create(&gateway, "/a.txt").await;
    raw(&gateway, "POST", "write?path=/a.txt&offset=0", b"kept").await;
    let below = [
        create(&gateway, "/a.txt/b.txt").await,
        call(&gateway, "POST", "mkdir", &json!({ "path": "/a.txt/d" })).await,
        call(&gateway, "PATCH", "rename", &json!({ "source": "/a.txt", "target": "/a.txt/c" })).await,
    ];
    for answer in below {
        assert!((400..500).contains(&answer.status), "{answer:?}");
        assert_eq!(answer.json()["message"], "Operation failed");
    }
    assert!(cluster.master.is_running());
    assert_eq!(content(&gateway, "/a.txt").await, b"kept");
}

/// A rename from the root into a folder hung the master; a file moved back was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_rename_from_the_root_to_a_directory_and_back_works() {
    let cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    create(&gateway, "/r.txt").await;
    raw(&gateway, "POST", "write?path=/r.txt&offset=0", b"moving").await;
    for (source, target) in [("/r.txt", "/dir/r.txt"), ("/dir/r.txt", "/r.txt"), ("/dir", "/other.d/deep")] {
        let answer = call(&gateway, "PATCH", "rename", &json!({ "source": source, "target": target })).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(http::get(&gateway, &format!("/fs{source}")).await.unwrap().status, 404);
    }
    assert_eq!(content(&gateway, "/r.txt").await, b"moving");
    let answer = call(&gateway, "PATCH", "rename", &json!({ "source": "/other.d", "target": "/other.d/deep/x" })).await;
    assert!((400..500).contains(&answer.status), "a directory cannot move below itself: {answer:?}");
}

/// Heartbeats brought deleted files back; a new file of the same name showed the deleted one's bytes.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_stays_deleted_and_a_new_file_shows_new_data() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    for path in ["/gone.txt", "/d/one", "/d/two"] {
        create(&gateway, path).await;
        raw(&gateway, "POST", &format!("write?path={path}&offset=0"), b"old old old").await;
    }
    for path in ["/gone.txt", "/d"] {
        let answer = call(&gateway, "DELETE", "delete", &json!({ "path": path })).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // Everything reports in again, in full.
    cluster.kill_all();
    cluster.start_all().await;
    let gateway = cluster.gateway();
    for path in ["/gone.txt", "/d/one", "/d/two", "/d"] {
        assert_eq!(http::get(&gateway, &format!("/fs{path}")).await.unwrap().status, 404, "{path}");
    }
    let answer = raw(&gateway, "GET", "list?path=./", &[]).await;
    assert_eq!(answer.json()["data"]["entries"], json!([]));
    create(&gateway, "/gone.txt").await;
    raw(&gateway, "POST", "write?path=/gone.txt&offset=0", b"new").await;
    assert_eq!(content(&gateway, "/gone.txt").await, b"new");
}

/// With fewer than four servers not one byte could be stored.
#[tokio::test(flavor = "multi_thread")]
async fn three_servers_store_data_and_so_do_two_of_them() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    assert_eq!(http::put(&gateway, "/fs/three", b"three").await.unwrap().status, 201);
    cluster.chunkservers[2].kill();
    let answer = http::put(&gateway, "/fs/two", b"two").await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.header("x-hercules-replicas"), Some("2"));
    assert_eq!(content(&gateway, "/three").await, b"three");
    assert_eq!(content(&gateway, "/two").await, b"two");
}

/// `//`, trailing slashes and missing leading ones made different files; `..` left the folder.
#[tokio::test(flavor = "multi_thread")]
async fn one_path_has_one_spelling_and_bad_ones_are_refused() {
    let cluster = Cluster::start(Plan::default()).await;
    let gateway = cluster.gateway();
    create(&gateway, "a/b").await;
    raw(&gateway, "POST", "write?path=//a//b/&offset=0", b"same").await;
    assert_eq!(content(&gateway, "/a/b").await, b"same");
    let long = format!("/{}", "x".repeat(256));
    for path in ["/../etc/passwd", "/a/../b", "/nul\u{0}", "/control\u{1}", long.as_str(), "/___deleted__x"] {
        let answer = create(&gateway, path).await;
        assert_eq!(answer.status, 400, "{path:?}: {answer:?}");
    }
}
