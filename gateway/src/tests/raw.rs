//! Bytes as no library sends them: cut, overlong, pipelined, hesitant.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::tests::harness::{Gateway, Reply, head, read_all, read_head};

/// Waits until the gateway has given up `count` uploads.
async fn until_aborted(gateway: &Gateway, count: usize) {
    for _ in 0..2000 {
        if gateway.fake.aborted() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} uploads were given up, not {count}", gateway.fake.aborted());
}

#[tokio::test]
async fn an_upload_cut_short_publishes_nothing() {
    let gateway = Gateway::start().await;
    gateway.fake.put("/a", b"old");
    let mut cut = 0;
    for sent in [0, 1, 99] {
        let bytes = [head("PUT", "/fs/a", &[], Some(100), false).as_bytes(), &vec![1; sent]].concat();
        gateway.raw(&bytes).await;
        cut += 1;
        until_aborted(&gateway, cut).await;
    }
    let chunked = b"PUT /fs/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nwo";
    gateway.raw(chunked).await;
    until_aborted(&gateway, cut + 1).await;
    assert_eq!(gateway.fake.data("/a").unwrap(), b"old");
}

#[tokio::test]
async fn an_upload_longer_than_its_length_publishes_nothing() {
    let gateway = Gateway::start().await;
    let bytes = [head("PUT", "/fs/a", &[], Some(5), false).as_bytes(), b"hello world"].concat();
    let reply = Reply::parse(&gateway.raw(&bytes).await).unwrap();
    assert_eq!(reply.status, 400);
    assert_eq!(gateway.fake.data("/a"), None);
    // The same in pieces, the surplus with the last of the body.
    let mut stream = gateway.connect().await;
    stream.write_all(&bytes[..bytes.len() - 8]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    stream.write_all(&bytes[bytes.len() - 8..]).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 400"));
    assert_eq!(gateway.fake.data("/a"), None);
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_in_order() {
    let gateway = Gateway::start().await;
    let put = |name: &str, body: &str, close| head("PUT", name, &[], Some(body.len()), close) + body;
    let bytes = put("/fs/a", "one", false) + &put("/fs/b", "two", false) + &head("GET", "/fs/a", &[], None, true);
    let answers = String::from_utf8(gateway.raw_open(bytes.as_bytes()).await).unwrap();
    let statuses: Vec<_> = answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["201", "201", "200"]);
    assert!(answers.ends_with("one"));
}

#[tokio::test]
async fn chunked_uploads_need_no_length() {
    let gateway = Gateway::start().await;
    let bytes = b"PUT /fs/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let reply = Reply::parse(&gateway.raw_open(bytes).await).unwrap();
    assert_eq!(reply.status, 201);
    assert_eq!(gateway.fake.data("/a").unwrap(), b"hello world");
}

#[tokio::test]
async fn a_body_is_not_asked_for_when_it_would_be_refused() {
    let gateway = Gateway::start().await;
    gateway.fake.put("/a", b"old");
    gateway.fake.put("/dir/x", b"");
    let expect = ("expect", "100-continue");
    for (method, target, fields, len, want) in [
        ("PUT", "/fs/a", vec![("if-none-match", "*")], 5, "412"),
        ("PUT", "/fs/dir", vec![], 5, "409"),
        ("PUT", "/fs/../a", vec![], 5, "400"),
        ("PUT", "/fs/b", vec![("content-digest", "sha-256=:x:")], 5, "400"),
        ("POST", "/fs/a?append", vec![], (16 << 20) + 1, "413"),
        ("PATCH", "/api/v1/append?path=/a", vec![], (16 << 20) + 1, "413"),
        ("PATCH", "/fs/a", vec![("content-range", "bytes 9-13/*")], 5, "416"),
        ("POST", "/api/v1/write?path=/none", vec![], 5, "404"),
        ("POST", "/api/v1/mkdir", vec![], 2 << 20, "413"),
    ] {
        let fields = [fields, vec![expect]].concat();
        let mut stream = gateway.connect().await;
        stream.write_all(head(method, target, &fields, Some(len), true).as_bytes()).await.unwrap();
        let answer = read_head(&mut stream).await;
        assert_eq!(&answer[9..12], want, "{method} {target}");
    }
    let mut stream = gateway.connect().await;
    stream.write_all(head("PUT", "/fs/b", &[expect], Some(2), true).as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    stream.write_all(b"ok").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 201"));
}

#[tokio::test]
async fn a_client_that_ignores_a_refusal_still_gets_to_read_it() {
    let gateway = Gateway::start().await;
    let mut stream = gateway.connect().await;
    stream.write_all(head("POST", "/fs/a?append", &[], Some(20 << 20), false).as_bytes()).await.unwrap();
    let chunk = vec![0; 1 << 20];
    for _ in 0..20 {
        stream.write_all(&chunk).await.expect("what is still sent is taken, not answered with a reset");
    }
    assert_eq!(Reply::read_to_end(&mut stream).await.unwrap().status, 413);
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_upload_with_it() {
    let gateway = Gateway::start().await;
    gateway.fake.gate_uploads();
    let mut stream = gateway.connect().await;
    let bytes = [head("PUT", "/fs/a", &[], Some(5), false).as_bytes(), b"hello"].concat();
    stream.write_all(&bytes).await.unwrap();
    // The upload waits for the cluster with its whole body in hand when the client leaves.
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(stream);
    until_aborted(&gateway, 1).await;
    assert_eq!(gateway.fake.data("/a"), None);
}

#[tokio::test]
async fn an_upload_is_held_back_while_the_cluster_is_slow() {
    let gateway = Gateway::with(|limits| limits.read_buffer_bytes = 64 << 10).await;
    let gate = gateway.fake.gate_uploads();
    let mut stream = gateway.connect().await;
    let total = 64 << 20;
    stream.write_all(head("PUT", "/fs/a", &[], Some(total), true).as_bytes()).await.unwrap();
    let chunk = vec![5; 1 << 20];
    let mut sent = 0;
    // Nothing is taken by the cluster, so what can be sent is what sockets and one buffer hold.
    while let Ok(Ok(len)) = tokio::time::timeout(Duration::from_millis(500), stream.write(&chunk)).await {
        sent += len;
    }
    assert!(sent < 16 << 20, "{sent} bytes were taken without a place to put them");
    gate.add_permits(1 << 20);
    while sent < total {
        sent += stream.write(&chunk[..chunk.len().min(total - sent)]).await.unwrap();
    }
    assert_eq!(Reply::read_to_end(&mut stream).await.unwrap().status, 201);
    let largest = gateway.fake.largest_piece();
    assert!(largest <= 128 << 10, "{largest}: a buffer may double, no more");
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let gateway = Gateway::start().await;
    gateway.fake.put("/a", b"abc");
    let mut stream = gateway.connect().await;
    for _ in 0..3 {
        stream.write_all(head("GET", "/fs/a", &[], None, false).as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200"));
        let mut body = [0; 3];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"abc");
    }
}

#[tokio::test]
async fn what_is_no_request_is_answered_400_or_closed() {
    let gateway = Gateway::start().await;
    for junk in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET /fs/a\x01 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = gateway.raw(junk).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    }
    let smuggled = b"PUT /fs/a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nhello";
    assert!(gateway.raw(smuggled).await.starts_with(b"HTTP/1.1 400"));
    assert_eq!(gateway.fake.data("/a"), None);
}

impl Gateway {
    /// Sends these bytes and reads all there is, without ending the sending side.
    async fn raw_open(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        read_all(&mut stream).await
    }
}
