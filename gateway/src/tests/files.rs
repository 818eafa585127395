//! `/fs`: what curl, browsers and rclone do.

use crate::tests::harness::Gateway;

#[tokio::test]
async fn a_file_goes_in_and_comes_back() {
    let gateway = Gateway::start().await;
    let body: Vec<u8> = (0..1_000_003_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let put = gateway.send("PUT", "/fs/dir/a%20file", &[("content-type", "text/x-test")], &body).await;
    assert_eq!(put.status, 201, "{}", put.text());
    let etag = put.field("etag").unwrap().to_owned();
    let want = serde_json::json!({"path": "/dir/a file", "length": 1_000_003, "etag": etag});
    assert_eq!(put.json(), want);
    assert_eq!(put.field("x-hercules-durable"), Some("true"));
    assert_eq!(put.field("x-hercules-replicas"), Some("3"));

    let got = gateway.get("/fs/dir/a%20file").await;
    assert_eq!((got.status, got.whole), (200, true));
    assert!(got.body == body);
    for (name, value) in [
        ("content-length", "1000003"),
        ("content-type", "text/x-test"),
        ("accept-ranges", "bytes"),
        ("etag", etag.as_str()),
        ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(got.field(name), Some(value), "{name}");
    }
    let head = gateway.send("HEAD", "/fs/dir/a%20file", &[], b"").await;
    assert_eq!((head.status, head.field("content-length"), head.body.len()), (200, Some("1000003"), 0));
    assert_eq!(head.field("etag"), Some(etag.as_str()));
}

#[tokio::test]
async fn replacing_a_file_answers_200_and_another_etag() {
    let gateway = Gateway::start().await;
    let first = gateway.put("/fs/a", b"one").await;
    let second = gateway.put("/fs/a", b"two").await;
    assert_eq!((first.status, second.status), (201, 200));
    assert_ne!(first.field("etag"), second.field("etag"));
    assert_eq!(gateway.get("/fs/a").await.body, b"two");
    assert_eq!(gateway.get("/fs/a").await.field("content-type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let gateway = Gateway::start().await;
    assert_eq!(gateway.put("/fs/empty", b"").await.status, 201);
    let got = gateway.get("/fs/empty").await;
    assert_eq!((got.status, got.field("content-length"), got.body.len()), (200, Some("0"), 0));
}

#[tokio::test]
async fn ranges_give_the_bytes_asked_for() {
    let gateway = Gateway::start().await;
    gateway.fake.put("/a", b"0123456789");
    for (range, want, field) in [
        ("bytes=2-4", &b"234"[..], "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=0-99", b"0123456789", "bytes 0-9/10"),
    ] {
        let got = gateway.send("GET", "/fs/a", &[("range", range)], b"").await;
        assert_eq!((got.status, got.body.as_slice(), got.field("content-range")), (206, want, Some(field)), "{range}");
    }
    let beyond = gateway.send("GET", "/fs/a", &[("range", "bytes=10-")], b"").await;
    assert_eq!((beyond.status, beyond.field("content-range")), (416, Some("bytes */10")));
    let odd = gateway.send("GET", "/fs/a", &[("range", "bytes=x")], b"").await;
    assert_eq!((odd.status, odd.body.len()), (200, 10));
}

#[tokio::test]
async fn several_ranges_come_as_parts() {
    let gateway = Gateway::start().await;
    gateway.fake.put("/a", b"0123456789");
    let got = gateway.send("GET", "/fs/a", &[("range", "bytes=0-1,-1")], b"").await;
    assert_eq!((got.status, got.whole), (206, true));
    let boundary = got.field("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    let part = |range: &str, data: &str| {
        format!(
            "\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes {range}/10\r\n\r\n{data}"
        )
    };
    assert_eq!(got.text(), part("0-1", "01") + &part("9-9", "9") + &format!("\r\n--{boundary}--\r\n"));
}

#[tokio::test]
async fn a_read_that_fails_midway_breaks_the_connection() {
    let gateway = Gateway::start().await;
    gateway.fake.put("/a", &vec![7; 8 << 20]);
    gateway.fake.break_reads_at(4 << 20);
    let got = gateway.get("/fs/a").await;
    assert_eq!((got.status, got.field("content-length"), got.whole), (200, Some("8388608"), false));
    assert!(got.body.len() <= 4 << 20);
    gateway.fake.break_reads_at(0);
    let got = gateway.get("/fs/a").await;
    assert_eq!(got.status, 502, "nothing was sent yet, so the status can say it");
    assert!(!got.text().contains("chunkserver1"), "{}", got.text());
}

#[tokio::test]
async fn records_are_appended_where_the_answer_says() {
    let gateway = Gateway::start().await;
    let first = gateway.send("POST", "/fs/log/a?append", &[], b"one").await;
    assert_eq!((first.status, first.text()), (200, "{\"offset\":0,\"length\":3}"));
    let second = gateway.send("POST", "/fs/log/a?append", &[], b"second").await;
    assert_eq!(second.text(), "{\"offset\":3,\"length\":6}");
    assert_eq!(second.field("x-hercules-replicas"), Some("3"));
    let empty = gateway.send("POST", "/fs/log/a?append", &[], b"").await;
    assert_eq!(empty.text(), "{\"offset\":9,\"length\":0}");
    assert_eq!(gateway.fake.data("/log/a").unwrap(), b"onesecond");
}

#[tokio::test]
async fn a_patch_writes_in_place_and_may_extend() {
    let gateway = Gateway::start().await;
    gateway.fake.put("/a", b"0123456789");
    let patch =
        async |range: &str, body: &[u8]| gateway.send("PATCH", "/fs/a", &[("content-range", range)], body).await;
    assert_eq!(patch("bytes 2-3/*", b"xy").await.text(), "{\"offset\":2,\"length\":2}");
    assert_eq!(patch("bytes 9-11/12", b"abc").await.status, 200);
    assert_eq!(gateway.fake.data("/a").unwrap(), b"01xy45678abc");
    assert_eq!(patch("bytes 13-13/*", b"z").await.status, 416);
    assert_eq!(patch("bytes 0-3/*", b"four5").await.status, 400);
    assert_eq!(patch("bytes 0-3/2", b"four").await.status, 400);
    assert_eq!(gateway.send("PATCH", "/fs/a", &[], b"x").await.status, 400);
    assert_eq!(gateway.fake.data("/a").unwrap(), b"01xy45678abc");
    assert_eq!(gateway.send("PATCH", "/fs/none", &[("content-range", "bytes 0-0/*")], b"x").await.status, 404);
}

#[tokio::test]
async fn names_are_made_moved_removed_and_brought_back() {
    let gateway = Gateway::start().await;
    let post = |target: &'static str| gateway.send("POST", target, &[], b"");
    assert_eq!(post("/fs/d/e?mkdir").await.status, 201);
    assert_eq!(post("/fs/d/e?mkdir").await.status, 200);
    gateway.put("/fs/d/e/f", b"x").await;
    assert_eq!(post("/fs/d/e/f?rename=%2Fd%2Fg%20h").await.json()["path"], "/d/g h");
    gateway.put("/fs/d/e/f", b"y").await;
    let taken = post("/fs/d/e/f?rename=/d/g%20h").await;
    assert_eq!((taken.status, taken.json()["detail"].as_str()), (409, Some("target path /d/g h already exists")));
    assert_eq!(post("/fs/d/e/f?rename=/d/g%20h&replace").await.status, 200);
    assert_eq!(gateway.fake.data("/d/g h").unwrap(), b"y");

    let delete = |target: &'static str| gateway.send("DELETE", target, &[], b"");
    assert_eq!(delete("/fs/d/g%20h").await.status, 204);
    assert_eq!(delete("/fs/d/g%20h").await.status, 404);
    assert_eq!(post("/fs/d/g%20h?undelete").await.status, 200);
    assert_eq!(gateway.get("/fs/d/g%20h").await.body, b"y");
    assert_eq!(post("/fs/d/g%20h?undelete").await.status, 409);
    assert_eq!(delete("/fs/d").await.status, 409);
    assert_eq!(delete("/fs/d/e").await.status, 409, "not even an empty directory by accident");
    assert_eq!(delete("/fs/d?recursive").await.status, 204);
    assert_eq!(gateway.get("/fs/d/g%20h").await.status, 404);
    assert_eq!(delete("/fs/?recursive").await.status, 409, "the root stays");
    for bad in ["/fs/x", "/fs/x?mkdir&append", "/fs/x?rename=", "/fs/x?rename=/a/../b"] {
        assert_eq!(post(bad).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_file_in_the_way_is_a_conflict_and_a_directory_is_no_file() {
    let gateway = Gateway::start().await;
    gateway.put("/fs/file", b"x").await;
    gateway.send("POST", "/fs/dir?mkdir", &[], b"").await;
    assert_eq!(gateway.put("/fs/file/below", b"y").await.status, 409);
    assert_eq!(gateway.send("POST", "/fs/file/below?mkdir", &[], b"").await.status, 409);
    assert_eq!(gateway.put("/fs/dir", b"y").await.status, 409);
    assert_eq!(gateway.put("/fs/dir/", b"y").await.status, 400);
    assert_eq!(gateway.send("POST", "/fs/dir?append", &[], b"y").await.status, 409);
    assert_eq!(gateway.get("/fs/file/").await.status, 404);
    assert_eq!(gateway.fake.data("/file").unwrap(), b"x");
}

#[tokio::test]
async fn a_directory_lists_in_pages_and_redirects_to_its_slash() {
    let gateway = Gateway::start().await;
    for name in ["a", "b", "c/d"] {
        gateway.fake.put(&format!("/dir x/{name}"), b"12345");
    }
    let bare = gateway.send("HEAD", "/fs/dir%20x", &[], b"").await;
    assert_eq!((bare.status, bare.field("location")), (301, Some("/fs/dir%20x/")));
    let all = gateway.get("/fs/dir%20x/").await.json();
    let names: Vec<_> = all["entries"].as_array().unwrap().iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(all["entries"][2]["type"], "directory");
    assert_eq!((&all["entries"][0]["length"], &all["next"]), (&5.into(), &serde_json::Value::Null));

    let mut target = "/fs/dir%20x/?limit=2".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = gateway.get(&target).await;
        seen.extend(page.json()["entries"].as_array().unwrap().iter().map(|entry| entry["name"].clone()));
        let Some(link) = page.field("link") else { break };
        target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
    }
    assert_eq!(seen, ["a", "b", "c"]);
    assert_eq!(gateway.get("/fs/").await.json()["entries"][0]["path"], "/dir x");
    assert_eq!(gateway.get("/fs").await.status, 200);
    assert_eq!(gateway.get("/fs/?limit=x").await.status, 400);
}

#[tokio::test]
async fn a_hostile_name_stays_text_in_html() {
    let gateway = Gateway::start().await;
    let name = "<script>alert('&')</script>";
    gateway.fake.put("/javascript:alert(1)", b"");
    gateway.fake.put(&format!("/{}", name.replace('/', "")), b"");
    let page = gateway.send("GET", "/fs/", &[("accept", "text/html,*/*;q=0.8")], b"").await;
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    let html = page.text();
    assert!(!html.contains("<script>") && !html.contains("href=\"javascript:"), "{html}");
    assert!(html.contains("href=\"%3Cscript%3Ealert%28%27%26%27%29%3Cscript%3E\""), "{html}");
    assert!(html.contains("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;script&gt;"), "{html}");
    assert!(page.field("content-security-policy").unwrap().starts_with("default-src 'none'"));
}

#[tokio::test]
async fn paths_that_could_leave_the_tree_are_refused_by_every_method() {
    let gateway = Gateway::start().await;
    let long = format!("/fs/{}", "x".repeat(300));
    let deep = format!("/fs{}", "/a".repeat(200));
    for target in [
        "/fs/../etc/passwd",
        "/fs/a/../../b",
        "/fs/%2e%2e/b",
        "/fs/%2E%2E%2Fb",
        "/fs/a/..%2f..%2fb",
        "/fs/a%00b",
        "/fs/a%0Ab",
        "/fs/a%7f",
        "/fs/a%zz",
        "/fs/%ff%fe",
        "/fs/___deleted__a",
        &long,
        &deep,
    ] {
        for method in ["GET", "PUT", "DELETE", "PATCH", "POST"] {
            let reply = gateway.send(method, target, &[("content-range", "bytes 0-0/*")], b"x").await;
            assert_eq!(reply.status, 400, "{method} {target}");
            assert_eq!(reply.field("content-type"), Some("application/problem+json"), "{method} {target}");
        }
    }
    assert!(gateway.fake.paths().is_empty());
}

#[tokio::test]
async fn failures_are_problems_with_the_request_s_id() {
    let gateway = Gateway::start().await;
    let reply = gateway.send("GET", "/fs/none", &[("x-request-id", "mine-7")], b"").await;
    assert_eq!(reply.field("x-request-id"), Some("mine-7"));
    assert_eq!(
        reply.text(),
        "{\"type\":\"urn:hercules:error:not-found\",\"title\":\"not-found\",\"status\":404,\
         \"detail\":\"path /none is not found\",\"instance\":\"urn:hercules:request:mine-7\"}"
    );
    gateway.fake.fail_next(wire::Kind::Unavailable, "connect 10.0.0.1:9090: refused");
    let reply = gateway.get("/fs/none").await;
    assert_eq!((reply.status, reply.field("retry-after")), (503, Some("1")));
    assert!(!reply.text().contains("10.0.0.1"));
    assert!(reply.field("x-request-id").is_some_and(|id| id.len() > 8));
    for (kind, status) in [(wire::Kind::NoSpace, 507), (wire::Kind::Unknown, 504), (wire::Kind::Overloaded, 503)] {
        gateway.fake.fail_next(kind, "");
        assert_eq!(gateway.get("/fs/none").await.status, status);
    }
    let method = gateway.send("PROPFIND", "/fs/a", &[], b"").await;
    assert_eq!((method.status, method.field("allow")), (405, Some("GET,HEAD,PUT,POST,PATCH,DELETE,OPTIONS")));
}
