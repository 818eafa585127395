//! `hercules dev`: what a developer types first, and what is left when it ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene should fail loudly")]

mod support;

use std::io::{BufRead, BufReader, Lines, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use support::{hercules, succeeded, wait_for, wait_until};

/// A running `dev`, and its events. Dropping it ends everything.
struct Dev {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
    ready: Value,
}

impl Dev {
    fn start(args: &[&str]) -> Self {
        let mut command = hercules();
        command.args(["dev", "--ephemeral", "--dir", env!("CARGO_TARGET_TMPDIR"), "--json", "--parent-pipe"]);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut dev = Self { child, events, ready: Value::Null };
        dev.ready = dev.event("ready");
        dev
    }

    /// The next event, which must be this one.
    fn event(&mut self, kind: &str) -> Value {
        let line = self.events.next().unwrap().unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["event"], kind, "{line}");
        event
    }

    fn servers(&self) -> Vec<(String, i32, String)> {
        let servers = self.ready["servers"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        servers.iter().map(|s| (text(&s["name"]), pid(&s["pid"]), text(&s["address"]))).collect()
    }

    fn run(&self, args: &[&str]) -> String {
        let master = self.ready["master"].as_str().unwrap();
        let key = self.ready["cluster_key_file"].as_str().unwrap();
        succeeded(hercules().args(args).args(["--master", master, "--cluster-key-file", key]).output().unwrap())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn pid(value: &Value) -> i32 {
    i32::try_from(value.as_i64().unwrap()).unwrap()
}

fn is_there(pid: i32) -> bool {
    test_kill_process(Pid::from_raw(pid).unwrap()).is_ok()
}

#[test]
fn a_dead_server_comes_back_where_it_was_and_the_end_leaves_nothing() {
    let mut dev = Dev::start(&["--chunkservers", "2"]);
    let servers = dev.servers();
    let names: Vec<&str> = servers.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(names, ["master", "chunkserver1", "chunkserver2", "gateway"]);
    dev.run(&["put", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "/a"]);

    let (_, victim, _) = &servers[1];
    kill_process(Pid::from_raw(*victim).unwrap(), Signal::KILL).unwrap();
    assert_eq!(dev.event("exited")["name"], "chunkserver1");
    let back = pid(&dev.event("restarted")["pid"]);
    assert_ne!(back, *victim);
    wait_until("both chunkservers at their old addresses", || {
        let status: Value = serde_json::from_str(&dev.run(&["status", "--json"])).unwrap();
        servers[1..3].iter().all(|(_, _, address)| {
            let found = status["servers"].as_array().unwrap().iter().find(|server| server["address"] == **address);
            found.is_some_and(|server| server["state"] == "alive")
        })
    });
    dev.run(&["stat", "--chunks", "/a"]);

    let without_key = hercules().args(["status", "--master", &servers[0].2]).output().unwrap();
    let error = String::from_utf8_lossy(&without_key.stderr).into_owned();
    assert_eq!(without_key.status.code(), Some(78), "{error}");
    assert!(error.contains("--cluster-key-file") && error.contains("cluster.key"), "{error}");

    let dir = dev.ready["dir"].as_str().unwrap().to_owned();
    drop(dev.child.stdin.take());
    assert_eq!(wait_for(&mut dev.child), 0);
    for pid in servers.iter().map(|(_, pid, _)| *pid).chain([back]) {
        assert!(!is_there(pid), "process {pid} is left");
    }
    assert!(!Path::new(&dir).exists(), "{dir} is left");
}

#[test]
fn servers_do_not_outlive_a_dev_that_was_killed() {
    let mut dev = Dev::start(&["--chunkservers", "1"]);
    let servers = dev.servers();
    dev.child.kill().unwrap();
    for (name, pid, _) in servers {
        wait_until(&format!("{name} to go with its parent"), || !is_there(pid));
    }
    std::fs::remove_dir_all(dev.ready["dir"].as_str().unwrap()).unwrap();
}

#[test]
fn a_server_that_cannot_start_tells_why_and_ends_everything_with_its_exit_code() {
    let mut command = hercules();
    command.args(["dev", "--ephemeral", "--dir", env!("CARGO_TARGET_TMPDIR"), "--shards", "1000"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = wait_for(&mut child);
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(status, 78, "{error}");
    assert!(error.contains("1000 shards are not possible") && error.contains("did not start"), "{error}");
}
