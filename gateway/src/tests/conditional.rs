//! Conditional requests and digests on `/fs`.

use crate::tests::harness::Gateway;

#[tokio::test]
async fn reads_are_conditional() {
    let gateway = Gateway::start().await;
    let etag = gateway.put("/fs/a", b"x").await.field("etag").unwrap().to_owned();
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let before = "Sun, 06 Nov 1994 08:49:36 GMT";
    for (field, value, want) in [
        ("if-none-match", etag.as_str(), 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"other\"", 200),
        ("if-match", etag.as_str(), 200),
        ("if-match", "\"other\"", 412),
        ("if-modified-since", date, 304),
        ("if-modified-since", before, 200),
        ("if-unmodified-since", date, 200),
        ("if-unmodified-since", before, 412),
        ("if-match", "unquoted", 400),
    ] {
        for method in ["GET", "HEAD"] {
            let reply = gateway.send(method, "/fs/a", &[(field, value)], b"").await;
            assert_eq!(reply.status, want, "{method} {field}: {value}");
            if want == 304 {
                assert_eq!((reply.field("etag"), reply.body.len()), (Some(etag.as_str()), 0));
            }
        }
    }
}

#[tokio::test]
async fn a_range_of_another_version_is_not_mixed_in() {
    let gateway = Gateway::start().await;
    let etag = gateway.put("/fs/a", b"0123").await.field("etag").unwrap().to_owned();
    for (value, want) in [(etag.as_str(), 206), ("\"old\"", 200), ("Sun, 06 Nov 1994 08:49:37 GMT", 206)] {
        let reply = gateway.send("GET", "/fs/a", &[("range", "bytes=1-"), ("if-range", value)], b"").await;
        assert_eq!(reply.status, want, "{value}");
    }
}

#[tokio::test]
async fn writes_are_conditional_and_a_refused_one_changes_nothing() {
    let gateway = Gateway::start().await;
    let put = |field: &'static str, value: String| {
        let gateway = &gateway;
        async move { gateway.send("PUT", "/fs/a", &[(field, &value)], b"new").await.status }
    };
    assert_eq!(put("if-match", "*".into()).await, 412);
    assert_eq!(put("if-none-match", "*".into()).await, 201);
    assert_eq!(put("if-none-match", "*".into()).await, 412);
    let etag = gateway.get("/fs/a").await.field("etag").unwrap().to_owned();
    assert_eq!(put("if-match", "\"other\"".into()).await, 412);
    assert_eq!(put("if-match", etag.clone()).await, 200);
    assert_eq!(put("if-match", etag.clone()).await, 412, "the file is another now");
    assert_eq!(put("if-match", "*".into()).await, 200);

    gateway.fake.put("/a", b"keep");
    for (method, target) in
        [("DELETE", "/fs/a"), ("POST", "/fs/a?append"), ("POST", "/fs/a?rename=/b"), ("PATCH", "/fs/a")]
    {
        let fields = [("if-match", etag.as_str()), ("content-range", "bytes 0-0/*")];
        assert_eq!(gateway.send(method, target, &fields, b"x").await.status, 412, "{method} {target}");
    }
    assert_eq!(gateway.fake.data("/a").unwrap(), b"keep");
    assert_eq!(gateway.fake.data("/b"), None);
}

#[tokio::test]
async fn a_file_that_appears_during_an_upload_is_not_overwritten() {
    use crate::tests::harness::{Reply, head};
    use tokio::io::AsyncWriteExt;
    let gateway = Gateway::start().await;
    let gate = gateway.fake.gate_uploads();
    let mut stream = gateway.connect().await;
    let head = head("PUT", "/fs/a", &[("if-none-match", "*"), ("expect", "100-continue")], Some(3), true);
    stream.write_all(head.as_bytes()).await.unwrap();
    // The first poll of the body, and so the interim answer, comes after the precondition was checked.
    assert!(crate::tests::harness::read_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    gateway.fake.put("/a", b"theirs");
    gate.add_permits(1);
    stream.write_all(b"our").await.unwrap();
    assert_eq!(Reply::read_to_end(&mut stream).await.unwrap().status, 412);
    assert_eq!(gateway.fake.data("/a").unwrap(), b"theirs");
}

#[tokio::test]
async fn a_wrong_digest_publishes_nothing_and_a_right_one_is_kept() {
    let gateway = Gateway::start().await;
    let sha = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:";
    let crc = "mnG7TA=="; // CRC-32C of "hello", big-endian
    for (field, value) in [
        ("content-digest", sha),
        ("repr-digest", sha),
        ("x-amz-checksum-crc32c", crc),
        ("content-digest", "sha-256=:x:"),
    ] {
        let reply = gateway.send("PUT", "/fs/a", &[(field, value)], b"hellO").await;
        assert_eq!(reply.status, 400, "{field}");
        assert_eq!(gateway.fake.data("/a"), None, "{field}");
    }
    assert_eq!(gateway.fake.aborted(), 3);
    assert_eq!(gateway.send("PUT", "/fs/c", &[("x-amz-checksum-crc32c", crc)], b"hello").await.status, 201);
    assert_eq!(gateway.send("PUT", "/fs/a", &[("repr-digest", sha)], b"hello").await.status, 201);
    assert_eq!(gateway.get("/fs/a").await.field("repr-digest"), Some(sha));
}

#[tokio::test]
async fn a_body_that_would_be_stored_as_something_else_is_refused() {
    let gateway = Gateway::start().await;
    assert_eq!(gateway.send("PUT", "/fs/a", &[("content-encoding", "gzip")], b"x").await.status, 415);
    assert_eq!(gateway.send("PUT", "/fs/a", &[("content-range", "bytes 0-0/2")], b"x").await.status, 400);
    assert_eq!(gateway.send("PUT", "/fs/a", &[("content-encoding", "identity")], b"x").await.status, 201);
}
