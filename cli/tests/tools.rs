//! Files in and out of a small cluster by the command line, and a measurement of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene should fail loudly")]

mod support;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use support::{Cluster, Options};

fn small() -> Cluster {
    Cluster::start(&Options { chunkservers: 2, replicas: 2, shards: 1, ..Options::default() })
}

#[test]
fn a_tree_goes_in_and_comes_out_the_same() {
    let cluster = small();
    let here = cluster.scratch().join("here");
    fs::create_dir_all(here.join("a/b")).unwrap();
    fs::write(here.join("a/b/file"), vec![7; 3_000_000]).unwrap();
    fs::write(here.join("empty"), "").unwrap();
    let (here, there) = (here.to_str().unwrap(), cluster.scratch().join("there"));
    cluster.run(["put", "-r", here, "/tree"]);
    cluster.run(["get", "-r", "/tree", there.to_str().unwrap()]);
    assert_eq!(fs::read(there.join("a/b/file")).unwrap(), vec![7; 3_000_000]);
    assert_eq!(fs::read(there.join("empty")).unwrap(), b"");
    assert_eq!(cluster.run(["ls", "-r", "/tree"]), "a/\na/b/\na/b/file\nempty\n");
}

#[test]
fn pipes_ranges_and_digests() {
    let cluster = small();
    let mut child = cluster.command().args(["put", "--sha256", "-", "/pipe"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"0123456789").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(cluster.run(["cat", "--offset", "2", "--length", "3", "/pipe"]), "234");
    let stat = cluster.json(["stat", "--chunks", "/pipe"]);
    assert_eq!(stat["sha256"], "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882");
    assert_eq!(stat["replicas_equal"], true);
    assert_eq!(stat["chunk_list"][0]["replicas"].as_array().unwrap().len(), 2);
    let out = cluster.scratch().join("out");
    let got = cluster.json(["get", "--sha256", "/pipe", out.to_str().unwrap()]);
    assert_eq!(got["sha256"], stat["sha256"]);
    let beyond = cluster.command().args(["cat", "--offset", "11", "/pipe"]).output().unwrap();
    assert_eq!(beyond.status.code(), Some(2));
}

#[test]
fn names_move_go_and_come_back() {
    let cluster = small();
    let exit = |args: &[&str]| cluster.command().args(args).output().unwrap().status.code();
    cluster.run(["append", "/logs/a", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
    cluster.run(["mv", "/logs/a", "/archive/"]);
    assert_eq!(cluster.run(["ls", "-r"]), "archive/\narchive/a\nlogs/\n");
    assert_eq!(exit(&["stat", "/logs/a"]), Some(66));
    assert_eq!(exit(&["rm", "/archive"]), Some(1), "not without -r");
    cluster.run(["rm", "-r", "/archive"]);
    assert_eq!(exit(&["rm", "/archive"]), Some(66));
    assert_eq!(exit(&["rm", "-f", "/archive"]), Some(0));
    assert_eq!(cluster.run(["ls", "--trash"]), "/archive/\n");
    cluster.run(["undelete", "/archive"]);
    let whole = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    assert_eq!(cluster.run(["cat", "/archive/a"]), whole);
    assert_eq!(
        exit(&["put", "--no-replace", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "/archive/a"]),
        Some(1)
    );
}

#[test]
fn a_download_that_fails_leaves_the_old_file_alone() {
    let mut cluster = small();
    let out = cluster.scratch().join("out");
    fs::write(&out, "old").unwrap();
    cluster.run(["put", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "/a"]);
    cluster.chunkservers.iter_mut().for_each(support::Server::kill);
    let failed = cluster.command().args(["get", "--timeout", "2s", "/a"]).arg(&out).output().unwrap();
    assert!(matches!(failed.status.code(), Some(69 | 75)), "{failed:?}");
    assert_eq!(fs::read(&out).unwrap(), b"old");
    let beside =
        fs::read_dir(cluster.scratch()).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    assert_eq!(beside.filter(|name| name.contains(".part")).count(), 0);
}

#[test]
fn a_benchmark_accounts_for_every_process_and_cleans_up() {
    let cluster = small();
    for (what, size) in [("put", "2M"), ("get", "2M"), ("append", "64K")] {
        let report = cluster.json(["bench", what, "--size", size, "--count", "4", "--concurrency", "2"]);
        assert_eq!(report["replicas"], 2, "{report}");
        assert!(report["mib_per_s"].as_f64().unwrap() > 0.0, "{report}");
        assert!(report["latency_ms"]["p99"].as_f64() >= report["latency_ms"]["p50"].as_f64(), "{report}");
        let processes = report["processes"].as_array().unwrap();
        assert_eq!(processes.len(), 4, "client, master and two chunkservers: {report}");
        assert!(processes.iter().all(|process| process["cpu_s_per_gib"].is_f64()), "{report}");
        let device = report["device_bytes_per_byte"].as_f64().unwrap();
        assert!(if what == "get" { device < 2.0 } else { device >= 2.0 }, "two copies are written: {report}");
    }
    assert_eq!(cluster.run(["ls"]), "");
}

#[test]
fn health_and_doctor_ask_the_running_servers() {
    let cluster = small();
    let health = cluster.json(["health", &cluster.chunkservers[0].ready.admin]);
    assert_eq!(health["serves"], true, "{health}");
    let dir = cluster.scratch().join("doctor");
    let doctor =
        cluster.command().args(["doctor", "--json", "--time", "10ms", "--data-dir"]).arg(&dir).output().unwrap();
    let findings: Vec<Value> =
        String::from_utf8(doctor.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcome = |check: &str| findings.iter().find(|f| f["check"] == check).map(|f| f["outcome"].clone());
    assert!(!dir.exists(), "a check leaves nothing behind");
    for check in ["io-uring", "direct-io", "master", "clock", "chunkserver 1", "chunkserver 2", "measured"] {
        assert_eq!(outcome(check), Some("good".into()), "{check}: {findings:?}");
    }
}
