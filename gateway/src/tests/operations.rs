//! Health, metrics, CORS, routing, starting and stopping.

use tokio::io::AsyncWriteExt;

use crate::config::Config;
use crate::tests::fake::Fake;
use crate::tests::harness::{Gateway, Reply, head, read_head};
use crate::{StartError, start};

#[tokio::test]
async fn health_keeps_its_fields_and_gains_depth() {
    let gateway = Gateway::start().await;
    let health = gateway.get("/health").await;
    assert!(health.text().starts_with("{\"service\":\"hercules-http-gateway\",\"status\":\"healthy\",\"time\":"));
    assert!(health.json()["version"].is_string() && health.json()["master"].is_null());
    let deep = gateway.get("/health?deep").await;
    assert_eq!(deep.status, 200);
    assert_eq!(deep.json()["chunkservers"], serde_json::json!({"alive": 1, "total": 2}));
    assert_eq!(deep.json()["master"]["status"], "healthy");
    gateway.fake.set_master_down(true);
    let deep = gateway.get("/health?deep").await;
    assert_eq!((deep.status, deep.json()["status"].as_str()), (503, Some("master unreachable")));
    assert_eq!(gateway.get("/health").await.status, 200);
}

#[tokio::test]
async fn ready_means_that_the_cluster_serves_and_live_that_the_process_does() {
    let gateway = Gateway::start().await;
    gateway.fake.set_safe_mode(true);
    assert_eq!(gateway.get("/livez").await.status, 200);
    let ready = gateway.get("/readyz").await;
    assert_eq!((ready.status, ready.text()), (503, "master in safe mode"));
    let other = Gateway::start().await;
    assert_eq!(other.get("/readyz").await.status, 200);
    assert_eq!(other.send("HEAD", "/readyz", &[], b"").await.status, 200);
    assert_eq!(other.get("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let gateway = Gateway::start().await;
    gateway.put("/fs/a", b"12345").await;
    gateway.get("/fs/a").await;
    gateway.get("/fs/none").await;
    gateway.get("/nowhere").await;
    let reply = gateway.get("/metrics").await;
    assert_eq!(reply.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        "hercules_gateway_requests_total{route=\"/fs\",method=\"PUT\",status=\"201\"} 1",
        "hercules_gateway_requests_total{route=\"/fs\",method=\"GET\",status=\"200\"} 1",
        "hercules_gateway_requests_total{route=\"/fs\",method=\"GET\",status=\"404\"} 1",
        "hercules_gateway_requests_total{route=\"none\",method=\"GET\",status=\"404\"} 1",
        "hercules_gateway_request_seconds_count{route=\"/fs\",method=\"GET\"} 2",
        "hercules_gateway_requests_in_flight 1",
        "hercules_gateway_request_bytes_total 5",
        "hercules_gateway_client_retries_total 42",
    ] {
        assert!(reply.text().lines().any(|have| have == line), "{line} is missing in\n{}", reply.text());
    }
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes"] {
        let line = reply.text().lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 0.0, "{line}");
    }
}

#[tokio::test]
async fn the_system_routes_report_cluster_and_gateway() {
    let gateway = Gateway::start().await;
    let status = gateway.get("/api/v1/system/status").await.json();
    assert_eq!(status["master"]["address"], "master:9090");
    assert_eq!((&status["master"]["uptime"], &status["totalFiles"]), (&61.into(), &5.into()));
    assert_eq!(status["chunkservers"][1]["status"], "dead");
    let metrics = gateway.get("/api/v1/system/metrics").await.json();
    assert_eq!(metrics["metrics"]["requests"]["total"], 1);
    assert!(metrics["metrics"]["latency"]["p99"].is_number());
}

#[tokio::test]
async fn cors_is_open_as_in_the_original() {
    let gateway = Gateway::start().await;
    let preflight = gateway
        .send("OPTIONS", "/api/v1/list", &[("origin", "http://page"), ("access-control-request-method", "GET")], b"")
        .await;
    assert_eq!((preflight.status, preflight.body.len()), (204, 0));
    assert_eq!(preflight.field("access-control-allow-origin"), Some("*"));
    assert!(preflight.field("access-control-allow-methods").unwrap().starts_with("PUT,PATCH,GET,POST,DELETE,OPTIONS"));
    let headers = preflight.field("access-control-allow-headers").unwrap();
    assert!(headers.starts_with("content-type,content-length,accept,origin,cache-control"));
    assert_eq!(preflight.field("access-control-max-age"), Some("43200"));
    let simple = gateway.send("GET", "/api/v1/list", &[("origin", "http://page")], b"").await;
    assert_eq!(simple.field("access-control-allow-origin"), Some("*"));
    assert!(simple.field("access-control-expose-headers").unwrap().starts_with("content-length,x-bytes-read"));
    assert_eq!(simple.field("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn routes_are_found_as_in_the_original_and_methods_are_named() {
    let gateway = Gateway::start().await;
    assert_eq!(gateway.get("//api///v1//list").await.status, 200);
    let unknown = gateway.get("/api/v1/nothing").await;
    assert_eq!((unknown.status, unknown.text()), (404, "404 page not found"));
    assert_eq!(unknown.field("content-type"), Some("text/plain"));
    assert_eq!(gateway.get("/api/v1/list/").await.status, 404);
    for (method, target, allow) in [
        ("GET", "/api/v1/mkdir", "POST"),
        ("POST", "/api/v1/append", "PATCH"),
        ("POST", "/api/v1/list", "GET,HEAD"),
        ("PUT", "/api/v1/files", "POST,GET,HEAD,DELETE"),
    ] {
        let reply = gateway.send(method, target, &[], b"").await;
        assert_eq!((reply.status, reply.field("allow")), (405, Some(allow)), "{method} {target}");
        assert_eq!(reply.json()["message"], "Operation failed");
    }
}

#[tokio::test]
async fn stopping_lets_requests_finish_and_refuses_new_ones() {
    let gateway = Gateway::start().await;
    let gate = gateway.fake.gate_uploads();
    let mut idle = gateway.connect().await;
    let mut stream = gateway.connect().await;
    stream.write_all(head("PUT", "/fs/a", &[("expect", "100-continue")], Some(2), false).as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    let address = gateway.running.address;
    let stopping = tokio::spawn(gateway.running.stop());
    // The idle connection is closed, and by then nobody listens.
    assert!(read_head(&mut idle).await.is_empty());
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert!(!stopping.is_finished());
    gate.add_permits(1);
    stream.write_all(b"ok").await.unwrap();
    assert_eq!(Reply::read_to_end(&mut stream).await.unwrap().status, 201);
    stopping.await.unwrap();
    assert_eq!(gateway.fake.data("/a").unwrap(), b"ok");
}

#[tokio::test]
async fn without_a_master_the_real_client_gives_503_and_no_internals() {
    // A port that was free a moment ago, and that nobody listens on.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = Config::new(vec![nobody.to_string()]);
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.deadline = std::time::Duration::from_millis(300);
    let gateway = Gateway { fake: Fake::default(), running: start(config).await.unwrap() };
    assert_eq!(gateway.get("/health").await.status, 200);
    assert_eq!(gateway.get("/readyz").await.text(), "master unreachable");
    assert_eq!(gateway.get("/metrics").await.status, 200);
    for (method, target) in
        [("GET", "/fs/a"), ("PUT", "/fs/a"), ("GET", "/api/v1/list"), ("GET", "/api/v1/system/status")]
    {
        let reply = gateway.send(method, target, &[], b"").await;
        assert_eq!(reply.status, 503, "{method} {target}: {}", reply.text());
        assert!(reply.field("retry-after").is_some() && !reply.text().contains("127.0.0.1"), "{}", reply.text());
    }
    gateway.running.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_said_with_its_remedy() {
    let gateway = Gateway::start().await;
    let mut config = Config::new(vec!["master:9090".into()]);
    config.listen = gateway.running.address;
    let error = crate::server::serve(gateway.fake.clone(), config).await.unwrap_err();
    assert_eq!(error.exit, StartError::UNAVAILABLE);
    assert!(error.what.contains(&gateway.running.address.to_string()) && error.remedy.contains("port"), "{error}");
    assert_eq!(start(Config::new(Vec::new())).await.unwrap_err().exit, StartError::CONFIG);
}
