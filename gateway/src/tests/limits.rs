//! Every limit, seen to hold.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::tests::harness::{Gateway, Reply, head, read_all, read_head};

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn large_headers_and_many_fields_are_refused() {
    let gateway = Gateway::start().await;
    let long = "x".repeat(17 << 10);
    assert_eq!(gateway.send("GET", "/livez", &[("x-long", &long)], b"").await.status, 431);
    let fits = "x".repeat(15 << 10);
    assert_eq!(gateway.send("GET", "/livez", &[("x-long", &fits)], b"").await.status, 200);
    let many = |count| vec![("x-many", "1"); count];
    assert_eq!(gateway.send("GET", "/livez", &many(97), b"").await.status, 200);
    assert_eq!(gateway.send("GET", "/livez", &many(101), b"").await.status, 431);
}

#[tokio::test]
async fn a_header_that_does_not_come_is_not_waited_for() {
    let gateway = Gateway::with(|limits| limits.header_timeout = SHORT).await;
    for begun in [&b""[..], b"GET /livez HTTP/1.1\r\nhost:"] {
        let mut stream = gateway.connect().await;
        stream.write_all(begun).await.unwrap();
        read_all(&mut stream).await;
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let gateway = Gateway::with(|limits| limits.connections = 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = gateway.connect().await;
        stream.write_all(head("GET", "/livez", &[], None, false).as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200"));
        held.push(stream);
    }
    let refused = gateway.get("/livez").await;
    assert_eq!((refused.status, refused.field("retry-after"), refused.whole), (503, Some("1"), true));
    drop(held);
    let mut status = 503;
    for _ in 0..200 {
        status = gateway.get("/livez").await.status;
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(status, 200, "closed connections make room");
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_early_and_operators_are_not() {
    let gateway = Gateway::with(|limits| limits.requests = 1).await;
    let mut stream = gateway.connect().await;
    stream.write_all(head("PUT", "/fs/a", &[("expect", "100-continue")], Some(2), true).as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    let refused = gateway.get("/fs/b").await;
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
    assert_eq!(gateway.get("/api/v1/list").await.json()["message"], "Operation failed");
    assert_eq!(gateway.get("/metrics").await.status, 200);
    stream.write_all(b"ok").await.unwrap();
    assert_eq!(Reply::read_to_end(&mut stream).await.unwrap().status, 201);
    assert_eq!(gateway.get("/fs/a").await.status, 200);
}

#[tokio::test]
async fn a_body_that_stalls_or_trickles_is_given_up() {
    let gateway = Gateway::with(|limits| limits.body_idle = SHORT).await;
    let mut stream = gateway.connect().await;
    stream.write_all((head("PUT", "/fs/a", &[], Some(100), false) + "begun").as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 408"));
    assert_eq!(gateway.fake.data("/a"), None);

    let gateway = Gateway::with(|limits| {
        limits.body_grace = SHORT;
        limits.body_rate_min = 1 << 20;
    })
    .await;
    let stream = gateway.connect().await;
    let (mut from, mut to) = stream.into_split();
    to.write_all(head("PUT", "/fs/a", &[], Some(1 << 20), false).as_bytes()).await.unwrap();
    let trickle = tokio::spawn(async move {
        while to.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut answer = [0; 12];
    tokio::time::timeout(Duration::from_secs(20), from.read_exact(&mut answer)).await.expect("no end").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    trickle.abort();
    assert_eq!(gateway.fake.data("/a"), None);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let gateway = Gateway::with(|limits| limits.write_idle = SHORT).await;
    gateway.fake.put("/a", &vec![1; 32 << 20]);
    let mut stream = gateway.connect().await;
    stream.write_all(head("GET", "/fs/a", &[], None, false).as_bytes()).await.unwrap();
    // Reading nothing for long enough that buffers are full and the patience is over.
    let mut metrics = String::new();
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        metrics = gateway.get("/metrics").await.text().to_owned();
        if metrics.contains("hercules_gateway_connections 1\n") {
            break;
        }
    }
    assert!(metrics.contains("hercules_gateway_connections 1\n"), "only the scrape itself is left");
    assert!(read_all(&mut stream).await.len() < 32 << 20);
}

#[tokio::test]
async fn bodies_that_must_be_held_are_bounded_one_by_one_and_together() {
    let gateway = Gateway::with(|limits| {
        limits.append_bytes = 100_000;
        limits.write_bytes = 100_000;
        limits.whole_bytes = 150_000;
    })
    .await;
    let body = vec![1; 100_001];
    assert_eq!(gateway.send("POST", "/fs/a?append", &[], &body).await.status, 413);
    let chunked = [
        b"POST /fs/a?append HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n186a1\r\n",
        body.as_slice(),
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    assert_eq!(Reply::parse(&gateway.raw(&chunked).await).unwrap().status, 413);
    // One append holds two thirds of the memory; a second of that size waits, then is refused.
    let mut stream = gateway.connect().await;
    stream
        .write_all(head("POST", "/fs/a?append", &[("expect", "100-continue")], Some(100_000), true).as_bytes())
        .await
        .unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    assert_eq!(gateway.send("POST", "/fs/a?append", &[], &body[1..]).await.status, 503);
    assert_eq!(gateway.send("POST", "/fs/a?append", &[], b"small").await.status, 200);
    stream.write_all(&body[1..]).await.unwrap();
    assert_eq!(Reply::read_to_end(&mut stream).await.unwrap().status, 200);
    let json = format!("{{\"path\":\"/{}\"}}", "x".repeat(1 << 20));
    assert_eq!(gateway.json("POST", "/api/v1/mkdir", &json).await.status, 413);
}

#[tokio::test]
async fn files_beyond_the_limit_are_refused_with_and_without_a_length() {
    let gateway = Gateway::with(|limits| limits.file_bytes = 10).await;
    assert_eq!(gateway.put("/fs/a", b"0123456789").await.status, 201);
    assert_eq!(gateway.put("/fs/a", b"0123456789x").await.status, 413);
    let chunked = b"PUT /fs/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\nb\r\n0123456789x\r\n0\r\n\r\n";
    assert_eq!(Reply::parse(&gateway.raw(chunked).await).unwrap().status, 413);
    assert_eq!(gateway.fake.data("/a").unwrap(), b"0123456789");
}

#[tokio::test]
async fn a_slow_drain_is_ended() {
    let gateway = Gateway::with(|limits| limits.drain = SHORT).await;
    let mut stream = gateway.connect().await;
    stream.write_all(head("PUT", "/fs/a", &[("expect", "100-continue")], Some(2), false).as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    gateway.running.stop().await;
    assert!(read_all(&mut stream).await.is_empty());
    assert_eq!(gateway.fake.data("/a"), None);
}
