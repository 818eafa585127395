//! `/api/v1`: the original's contract test, its envelopes byte by byte, and the promised routes.

use crate::tests::harness::Gateway;

#[tokio::test]
async fn the_original_s_contract_test_passes() {
    let gateway = Gateway::start().await;
    let health = gateway.get("/health").await;
    assert_eq!((health.status, health.json()["service"].as_str()), (200, Some("hercules-http-gateway")));
    let mkdir = gateway.json("POST", "/api/v1/mkdir", "{\"path\":\"/test\"}").await;
    assert_eq!(
        mkdir.text(),
        "{\"data\":{\"path\":\"/test\"},\"message\":\"Directory created successfully\",\"success\":true}"
    );
    let create = gateway.json("POST", "/api/v1/create", "{\"path\":\"/test/f.txt\"}").await;
    assert_eq!(
        create.text(),
        "{\"data\":{\"path\":\"/test/f.txt\"},\"message\":\"File created successfully\",\"success\":true}"
    );
    assert_eq!(create.field("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(gateway.json("POST", "/api/v1/create", "{\"path\":\"/test/f.txt\"}").await.status, 200);
    let write =
        gateway.send("POST", "/api/v1/write?path=/test/f.txt&offset=0", &[], b"Hello, Hercules World! 123456").await;
    assert_eq!(
        write.text(),
        "{\"data\":{\"bytes_written\":29,\"offset\":0},\"message\":\"Data written successfully\",\"success\":true}"
    );
    let read = gateway.get("/api/v1/read?path=/test/f.txt").await;
    assert_eq!((read.status, read.field("x-bytes-read")), (200, Some("29")));
    assert_eq!(read.body, b"Hello, Hercules World! 123456");
    let append = gateway.send("PATCH", "/api/v1/append?path=/test/f.txt", &[], b"more").await;
    assert_eq!(
        append.text(),
        "{\"data\":{\"bytes_added\":4,\"offset\":29},\"message\":\"Data appended successfully\",\"success\":true}"
    );
    let info = gateway.get("/api/v1/fileinfo?path=/test/f.txt").await;
    assert_eq!(
        info.text(),
        "{\"data\":{\"chunks\":1,\"is_dir\":false,\"length\":33,\"path\":\"/test/f.txt\"},\"success\":true}"
    );
    let rename =
        gateway.json("PATCH", "/api/v1/rename", "{\"source\":\"/test/f.txt\",\"target\":\"/test/g.txt\"}").await;
    assert_eq!(
        rename.text(),
        "{\"data\":{\"source\":\"/test/f.txt\",\"target\":\"/test/g.txt\"},\"message\":\"File renamed successfully\",\"success\":true}"
    );
    let delete = gateway.json("DELETE", "/api/v1/delete", "{\"path\":\"/test/g.txt\"}").await;
    assert_eq!(
        delete.text(),
        "{\"data\":{\"path\":\"/test/g.txt\"},\"message\":\"File deleted successfully\",\"success\":true}"
    );
    let delete = gateway.send("DELETE", "/api/v1/delete?path=/test", &[], b"").await;
    assert_eq!(delete.json()["message"], "Directory deleted successfully");
    assert!(!gateway.fake.is_dir("/test"));
}

#[tokio::test]
async fn listings_are_recursive_ordered_and_go_cased() {
    let gateway = Gateway::start().await;
    let empty = gateway.get("/api/v1/list").await;
    assert_eq!(empty.text(), "{\"data\":{\"entries\":[],\"path\":\"/\"},\"success\":true}");
    gateway.fake.put("/d/<f>", b"123");
    let want = "{\"data\":{\"entries\":[\
        {\"Path\":\"/d\",\"Name\":\"d\",\"Length\":0,\"Chunk\":0,\"IsDir\":true,\
        \"path\":\"/d\",\"name\":\"d\",\"length\":0,\"chunk\":0,\"isDir\":true},\
        {\"Path\":\"/d/\\u003cf\\u003e\",\"Name\":\"\\u003cf\\u003e\",\"Length\":3,\"Chunk\":1,\"IsDir\":false,\
        \"path\":\"/d/\\u003cf\\u003e\",\"name\":\"\\u003cf\\u003e\",\"length\":3,\"chunk\":1,\"isDir\":false}\
        ],\"path\":\"./\"},\"success\":true}";
    assert_eq!(gateway.get("/api/v1/list?path=./").await.text(), want);
    let flat = gateway.get("/api/v1/list?recursive=false").await.json();
    assert_eq!(flat["data"]["entries"].as_array().unwrap().len(), 1);
    let file = gateway.get("/api/v1/list?path=/d/%3Cf%3E").await;
    assert_eq!((file.status, &file.json()["data"]["entries"]), (200, &serde_json::json!([])));
    assert_eq!(gateway.get("/api/v1/list?path=/none").await.status, 404);
}

#[tokio::test]
async fn a_large_listing_is_whole_though_it_is_fetched_in_pages() {
    let gateway = Gateway::with(|limits| limits.page_entries = 7).await;
    for n in 0..50 {
        gateway.fake.put(&format!("/f{n:02}"), b"");
    }
    let reply = gateway.get("/api/v1/list").await;
    assert!(reply.whole && gateway.fake.listed() == 8);
    let names: Vec<_> = reply.json()["data"]["entries"].as_array().unwrap().iter().map(|e| e["Name"].clone()).collect();
    assert_eq!(names, (0..50).map(|n| format!("f{n:02}")).collect::<Vec<_>>());

    let page = gateway.get("/api/v1/list?limit=2&after=/f10").await.json();
    assert_eq!(page["data"]["entries"][1]["Path"], "/f12");
    assert_eq!(page["data"]["next"], "/f12");
    let files = gateway.get("/api/v1/directories?path=/").await.json();
    assert_eq!(files["files"].as_array().unwrap().len(), 50);
}

#[tokio::test]
async fn failures_keep_the_original_s_envelope_and_texts() {
    let gateway = Gateway::start().await;
    gateway.fake.put("/f", b"12345");
    gateway.fake.put("/d/x", b"");
    for (method, target, body, status, error) in [
        ("POST", "/api/v1/mkdir", "{}", 400, "path is required"),
        ("POST", "/api/v1/create", "{\"path\":\"\"}", 400, "path is required"),
        ("DELETE", "/api/v1/delete", "{\"path\":null}", 400, "path is required"),
        ("PATCH", "/api/v1/rename", "{\"source\":\"/f\"}", 400, "source and target paths are required"),
        ("GET", "/api/v1/fileinfo", "", 400, "path is required"),
        ("GET", "/api/v1/read?path=", "", 400, "path is required"),
        ("POST", "/api/v1/write", "x", 400, "path is required"),
        ("PATCH", "/api/v1/append", "x", 400, "path is required"),
        ("GET", "/api/v1/chunk/handle?path=/f", "", 400, "path and index are required"),
        ("GET", "/api/v1/chunk/handle?path=/f&index=x", "", 400, "invalid index"),
        ("GET", "/api/v1/chunk/servers", "", 400, "handle is required"),
        ("GET", "/api/v1/chunk/servers?handle=x", "", 400, "invalid handle"),
        ("GET", "/api/v1/fileinfo?path=/none", "", 404, "path /none is not found"),
        ("GET", "/api/v1/read?path=/d", "", 409, "cannot read /d since it is a directory"),
        ("POST", "/api/v1/write?path=/d", "x", 409, "cannot write /d since it is a directory"),
        ("PATCH", "/api/v1/append?path=/d", "x", 409, "cannot write /d since it is a directory"),
        ("GET", "/api/v1/read?path=/f&offset=6", "", 416, "offset [6] cannot be greater than the file size"),
        ("GET", "/api/v1/read?path=/f&offset=-1", "", 400, "offset [-1] cannot be negative"),
        ("POST", "/api/v1/write?path=/f&offset=6", "x", 416, "write offset [6] cannot be greater than the file size"),
        ("POST", "/api/v1/write?path=/f&offset=6", "", 416, "write offset [6] cannot be greater than the file size"),
        ("PATCH", "/api/v1/rename", "{\"source\":\"/f\",\"target\":\"/d\"}", 409, "target path /d already exists"),
        ("PATCH", "/api/v1/rename", "{\"source\":\"/no\",\"target\":\"/x\"}", 404, "source path /no does not exist"),
        ("DELETE", "/api/v1/delete?path=/", "", 400, "cannot remove root directory"),
        ("POST", "/api/v1/create", "{\"path\":\"/d\"}", 409, "/d is a directory, not a file"),
        ("POST", "/api/v1/create", "{\"path\":\"/f/below\"}", 409, "/f is a file"),
        ("POST", "/api/v1/mkdir", "{\"path\":\"/a/../b\"}", 400, "`..` is not allowed in a path"),
        ("GET", "/api/v1/chunk/handle?path=/d&index=0", "", 409, "/d is a directory, not a file"),
        ("GET", "/api/v1/chunk/handle?path=/f&index=1", "", 404, "path /f has no chunk 1"),
    ] {
        let reply = gateway.json(method, target, body).await;
        let want = format!("{{\"error\":\"{error}\",\"message\":\"Operation failed\"}}");
        assert_eq!((reply.status, reply.text()), (status, want.as_str()), "{method} {target}");
    }
    let malformed = gateway.json("POST", "/api/v1/mkdir", "{\"path\"").await;
    assert_eq!((malformed.status, malformed.json()["message"].as_str()), (400, Some("Operation failed")));
    assert_eq!(gateway.fake.data("/f").unwrap(), b"12345");
    assert_eq!(gateway.fake.paths().iter().filter(|path| *path != "/").count(), 3, "no GET made anything");
}

#[tokio::test]
async fn codes_are_strings_where_the_original_had_them() {
    let gateway = Gateway::with(|limits| limits.append_bytes = 4).await;
    gateway.fake.put("/f", b"");
    let reply = gateway.send("PATCH", "/api/v1/append?path=/f", &[], b"12345").await;
    assert_eq!(reply.status, 413);
    assert_eq!(
        reply.text(),
        "{\"error\":\"len of data [5] \\u003e max append size [4]\",\"code\":\"3\",\"message\":\"Operation failed\"}"
    );
    gateway.fake.fail_next(wire::Kind::StaleEpoch, "epoch 4 is not 5");
    let reply = gateway.get("/api/v1/fileinfo?path=/f").await;
    assert_eq!((reply.status, reply.json()["code"].as_str()), (503, Some("8")));
}

#[tokio::test]
async fn reads_default_to_4096_bytes_and_never_give_more_than_there_is() {
    let gateway = Gateway::start().await;
    let data: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    gateway.fake.put("/f", &data);
    for (query, want) in [
        ("", 0..4096),
        ("&length=0", 0..4096),
        ("&length=-5", 0..4096),
        ("&length=x&offset=x", 0..4096),
        ("&offset=9990", 9990..10_000),
        ("&offset=10&length=5", 10..15),
        ("&offset=10000", 10_000..10_000),
        ("&length=9223372036854775807", 0..10_000),
    ] {
        let reply = gateway.get(&format!("/api/v1/read?path=/f{query}")).await;
        assert_eq!((reply.status, reply.field("content-type")), (200, Some("application/octet-stream")), "{query}");
        assert!(reply.body == data[want.clone()], "{query}");
        assert_eq!(reply.field("x-bytes-read"), Some(want.len().to_string().as_str()), "{query}");
    }
    gateway.fake.put("/big", &vec![1; (64 << 20) + 1]);
    let reply = gateway.get("/api/v1/read?path=/big&length=99999999999").await;
    assert_eq!((reply.field("x-bytes-read"), reply.body.len()), (Some("67108864"), 67_108_864));
}

#[tokio::test]
async fn a_write_at_an_offset_keeps_the_rest_and_goes_in_bounded_pieces() {
    let gateway = Gateway::with(|limits| limits.write_bytes = 1000).await;
    gateway.fake.put("/f", &[0; 100]);
    let body = vec![9; 2500];
    let reply = gateway.send("POST", "/api/v1/write?path=/f&offset=100", &[], &body).await;
    assert_eq!(reply.json()["data"]["bytes_written"], 2500);
    assert_eq!(gateway.fake.data("/f").unwrap(), [vec![0; 100], body].concat());
    assert_eq!(gateway.fake.largest_piece(), 1000);
    gateway.send("POST", "/api/v1/write?path=/f&offset=50", &[], b"x").await;
    let data = gateway.fake.data("/f").unwrap();
    assert_eq!((data.len(), &data[49..52]), (2600, &b"\0x\0"[..]));
}

#[tokio::test]
async fn chunks_are_shown_without_being_made() {
    let gateway = Gateway::start().await;
    gateway.fake.put("/f", b"x");
    let handle = gateway.get("/api/v1/chunk/handle?path=/f&index=0").await;
    let number = handle.json()["data"]["handle"].as_u64().unwrap();
    assert_eq!(
        handle.text(),
        format!("{{\"data\":{{\"handle\":{number},\"index\":0,\"path\":\"/f\"}},\"success\":true}}")
    );
    let servers = gateway.get(&format!("/api/v1/chunk/servers?handle={number}")).await;
    let data = &servers.json()["data"];
    assert_eq!(data["primary"], "chunkserver1:8081");
    assert_eq!(data["secondaries"], serde_json::json!(["chunkserver2:8082", "chunkserver3:8083"]));
    assert!(servers.text().starts_with("{\"data\":{\"expire\":\"20"), "{}", servers.text());
    assert_eq!(gateway.get("/api/v1/chunk/servers?handle=9999999999999").await.status, 404);
    assert_eq!(gateway.get("/api/v1/chunk/handle?path=/new&index=0").await.status, 404);
    let info = gateway.get(&format!("/api/v1/chunks/{number}")).await.json();
    assert_eq!((&info["version"], &info["length"]), (&7.into(), &10.into()));
    assert_eq!(info["checksum"], "ab".repeat(16), "the second member answers when the first is down");
    assert_eq!(gateway.get("/api/v1/chunks/x").await.json()["error"]["code"], "INVALID_PATH");
}

#[tokio::test]
async fn the_promised_routes_exist() {
    let gateway = Gateway::start().await;
    let made = gateway.json("POST", "/api/v1/files", "{\"path\":\"/p/f\"}").await;
    assert_eq!(
        (made.status, made.text()),
        (201, "{\"success\":true,\"path\":\"/p/f\",\"message\":\"File created successfully\"}")
    );
    let again = gateway.json("POST", "/api/v1/files", "{\"path\":\"/p/f\"}").await;
    assert_eq!((again.status, again.json()["error"]["code"].as_str()), (409, Some("FILE_EXISTS")));
    assert_eq!(gateway.json("POST", "/api/v1/directories", "{\"path\":\"/q\"}").await.status, 201);
    assert_eq!(gateway.json("POST", "/api/v1/directories", "{\"path\":\"/q\"}").await.status, 409);
    gateway.put("/fs/p/f", b"0123456789").await;
    let info = gateway.get("/api/v1/files?path=/p/f").await;
    let when = "1994-11-06T08:49:37Z";
    assert_eq!(
        info.text(),
        format!(
            "{{\"path\":\"/p/f\",\"isDir\":false,\"length\":10,\"chunks\":1,\"createdAt\":\"{when}\",\"modifiedAt\":\"{when}\"}}"
        )
    );
    let got = gateway.send("GET", "/api/v1/files/download?path=/p/f", &[("range", "bytes=2-3")], b"").await;
    assert_eq!((got.status, got.body.as_slice()), (206, &b"23"[..]));
    assert_eq!(got.field("content-disposition"), Some("attachment; filename=\"f\""));
    let dir = gateway.get("/api/v1/directories?path=/p").await;
    assert_eq!(
        dir.text(),
        "{\"path\":\"/p\",\"files\":[{\"name\":\"f\",\"path\":\"/p/f\",\"isDir\":false,\"length\":10,\"chunks\":1}]}"
    );
    assert_eq!(gateway.send("DELETE", "/api/v1/files?path=/p", &[], b"").await.status, 409);
    assert_eq!(gateway.send("DELETE", "/api/v1/files?path=/p/f", &[], b"").await.status, 200);
    let gone = gateway.get("/api/v1/files?path=/p/f").await;
    assert_eq!((gone.status, gone.json()["error"]["code"].as_str()), (404, Some("FILE_NOT_FOUND")));
}

/// A form with these fields, in this order.
fn form(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        let file = if *name == "file" { "; filename=\"x\"" } else { "" };
        body.extend(format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes());
        body.extend_from_slice(value);
        body.extend(b"\r\n");
    }
    body.extend(b"--B--\r\n");
    body
}

const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=B");

#[tokio::test]
async fn forms_upload_and_append_whichever_field_comes_first() {
    let gateway = Gateway::with(|limits| limits.append_bytes = 1000).await;
    let upload = |body: Vec<u8>| {
        let gateway = &gateway;
        async move { gateway.send("POST", "/api/v1/files/upload", &[FORM], &body).await }
    };
    let big = vec![3; 50_000];
    let reply = upload(form(&[("path", b"/up/a"), ("file", &big)])).await;
    assert_eq!(
        (reply.status, reply.text()),
        (201, "{\"success\":true,\"path\":\"/up/a\",\"size\":50000,\"message\":\"File uploaded successfully\"}")
    );
    assert_eq!(gateway.fake.data("/up/a").unwrap(), big);
    assert_eq!(upload(form(&[("file", b"small"), ("path", b"/up/b")])).await.status, 201);
    assert_eq!(gateway.fake.data("/up/b").unwrap(), b"small");
    let early = upload(form(&[("file", &big), ("path", b"/up/c")])).await;
    assert_eq!((early.status, early.json()["error"]["code"].as_str()), (413, Some("PAYLOAD_TOO_LARGE")));
    let appended = gateway.send("POST", "/api/v1/files/append?path=/up/b", &[FORM], &form(&[("file", b"er")])).await;
    assert_eq!((appended.status, &appended.json()["size"]), (200, &7.into()));
    assert_eq!(gateway.fake.data("/up/b").unwrap(), b"smaller");
    for bad in [
        form(&[("path", b"/up/d")]),
        form(&[("file", b"x")]),
        b"no form".to_vec(),
        form(&[("path", b"/../x"), ("file", b"x")]),
    ] {
        assert_eq!(upload(bad).await.status, 400);
    }
    let mut cut = form(&[("path", b"/up/d"), ("file", &big)]);
    cut.truncate(cut.len() - 4);
    assert_eq!(upload(cut).await.status, 400);
    assert_eq!(gateway.fake.data("/up/d"), None, "a form without an end publishes nothing");
}
