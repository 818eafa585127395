//! The real binary with bad input, and what it says about itself: exit codes and messages that
//! scripts and people rely on. No cluster is needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene should fail loudly")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};

use engine::runtime::Backend;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{first_line, hercules, metric, succeeded, wait_for, wait_until};

fn run(args: &[&str]) -> Output {
    hercules().args(args).output().unwrap()
}

/// Asserts that a command ends with this exit code, and that standard error says these things.
fn fails(mut command: Command, code: i32, says: &[&str]) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = wait_for(&mut child);
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(status, code, "{command:?}: {error}");
    for text in says {
        assert!(error.contains(text), "{command:?} does not say {text:?}: {error}");
    }
}

fn with(args: &[&str]) -> Command {
    let mut command = hercules();
    command.args(args);
    command
}

/// A port on loopback that nobody listens on.
fn closed_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_wrong_command_line_is_2_and_names_what_is_wrong() {
    fails(with(&["--nonsense"]), 2, &["--nonsense"]);
    fails(with(&["nonsense"]), 2, &["nonsense"]);
    fails(with(&[]), 2, &["Usage"]);
    fails(with(&["ls", "/a/../b"]), 2, &["`..` is not allowed"]);
    fails(with(&["bench", "put", "--size", "1X"]), 2, &["not a size"]);
    fails(with(&["chunkserver", "--listen", "host:port"]), 2, &["not an address"]);
    let runtimes = Backend::ALL.map(|backend| backend.to_string());
    fails(with(&["chunkserver", "--runtime", "tokio"]), 2, &runtimes.each_ref().map(String::as_str));
    fails(with(&["health"]), 2, &["--role"]);
    fails(with(&["-ServerType", "chunk"]), 2, &["chunk_server"]);
    let mut command = with(&[]);
    command.env("SERVER_TYPE", "nonsense");
    fails(command, 2, &["master_server"]);
}

#[test]
fn a_master_that_is_not_there_is_69_at_once_with_a_remedy() {
    let address = closed_port();
    for args in [vec!["status"], vec!["ls"], vec!["put", "Cargo.toml", "/a"], vec!["bench", "put"]] {
        let mut command = with(&args);
        command.env("MASTER_ADDR", &address);
        fails(command, 69, &[&address, "remedy:", "hercules dev"]);
    }
}

#[test]
fn health_tells_nobody_there_from_an_answer() {
    fails(with(&["health", &closed_port()]), 69, &["cannot connect"]);
}

#[test]
fn a_port_in_use_is_named_with_a_remedy_and_the_process_ends() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    fails(with(&["gateway", "--listen", &address]), 69, &[&address, "remedy:"]);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    fails(with(&["master", "--listen", &address, "--data-dir", dir]), 69, &[&address, "remedy:"]);
}

#[test]
fn a_data_folder_that_cannot_be_made_is_78_with_a_remedy() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let below_a_file = file.path().join("data");
    let dir = below_a_file.to_str().unwrap();
    let listen = ["--listen", "127.0.0.1:0", "--data-dir", dir];
    fails(with(&[&["master"], &listen[..]].concat()), 78, &[dir, "remedy:"]);
    let master = closed_port();
    fails(with(&[&["chunkserver", "--master", &master], &listen[..]].concat()), 78, &[dir, "remedy:"]);
    fails(with(&["dev", "--ephemeral", "--dir", dir]), 78, &[dir, "remedy:"]);
    fails(with(&["doctor", "--data-dir", dir]), 78, &[dir, "remedy:"]);
}

#[test]
fn a_name_that_no_machine_has_is_78() {
    fails(with(&["gateway", "--listen", "no-such-host.invalid:1"]), 78, &["no-such-host.invalid", "remedy:"]);
}

/// Settings as `--print-config --json` tells them: (value, source) of one.
fn setting(mut command: Command, name: &str) -> (String, String) {
    let output = succeeded(command.args(["--print-config", "--json"]).output().unwrap());
    let settings: Vec<Value> = serde_json::from_str(&output).unwrap();
    let found = settings.iter().find(|setting| setting["name"] == name).unwrap();
    (found["value"].as_str().unwrap().into(), found["source"].as_str().unwrap().into())
}

#[test]
fn a_flag_wins_over_our_variable_over_the_originals_over_the_default() {
    let listen = |set: &[(&str, &str)], args: &[&str]| {
        let mut command = hercules();
        command.arg("master").args(args).envs(set.iter().copied());
        setting(command, "listen")
    };
    let ours = ("HERCULES_LISTEN", "127.0.0.1:2");
    let original = ("SERVER_ADDRESS", "127.0.0.1:3");
    let told = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    assert_eq!(listen(&[ours, original], &["--listen", "127.0.0.1:1"]), told("127.0.0.1:1", "flag"));
    assert_eq!(listen(&[ours, original], &[]), told("127.0.0.1:2", "environment HERCULES_LISTEN"));
    assert_eq!(listen(&[original], &[]), told("127.0.0.1:3", "environment SERVER_ADDRESS"));
    let empty = ("HERCULES_LISTEN", "");
    assert_eq!(listen(&[empty, original], &[]), told("127.0.0.1:3", "environment SERVER_ADDRESS"));
    assert_eq!(listen(&[empty], &[]), told("0.0.0.0:9090", "default"));
}

#[test]
fn the_originals_environment_alone_chooses_and_configures_a_role() {
    let role = |server_type: &str, name: &str| {
        let mut command = hercules();
        command.env("SERVER_TYPE", server_type).env("MASTER_ADDR", "master:9090").env("GATEWAY_ADDR", "8090");
        command.env("SERVER_ADDRESS", "0.0.0.0:8085").env("ROOT_DIR", "/data/x").env("LOG_LEVEL", "warning");
        command.env("REDIS_ADDR", "redis:6379");
        setting(command, name).0
    };
    assert_eq!(role("chunk_server", "listen"), "0.0.0.0:8085");
    assert_eq!(role("chunk_server", "master"), "master:9090");
    assert_eq!(role("chunk_server", "data-dir"), "/data/x");
    assert_eq!(role("chunk_server", "admin"), "0.0.0.0:9085");
    assert_eq!(role("chunk_server", "log-level"), "warning");
    assert_eq!(role("master_server", "data-dir"), "/data/x");
    assert_eq!(role("gateway_server", "listen"), "8090");
}

#[test]
fn the_originals_flags_run_the_role() {
    let command = with(&["-ServerType", "chunk_server", "-serverAddr", "c1:8081", "-masterAddr", "m:9090"]);
    assert_eq!(setting(command, "listen"), ("c1:8081".into(), "flag".into()));
}

#[test]
fn a_gateway_announces_itself_answers_health_and_drains_on_sigterm() {
    let mut command = with(&["gateway", "--listen", "127.0.0.1:0", "--announce", "--log-format", "json"]);
    command.env("REDIS_ADDR", "redis:6379");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ready: Value = serde_json::from_str(&first_line(child.stdout.take().unwrap()).unwrap()).unwrap();
    assert_eq!(ready["role"], "gateway");
    let address = ready["address"].as_str().unwrap();
    let health = run(&["health", address, "--json"]);
    let health: Value = serde_json::from_slice(&health.stdout).unwrap();
    assert_eq!(health["address"], address);
    terminate(&child);
    assert_eq!(wait_for(&mut child), 0);
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("no Redis is needed"), "{log}");
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{line:?} is no row: {error}"));
    }
}

fn terminate(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    let mut command = with(&["gateway", "--listen", "127.0.0.1:0", "--announce", "--master", &closed_port()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ready: Value = serde_json::from_str(&first_line(child.stdout.take().unwrap()).unwrap()).unwrap();
    // A request that waits for a master that is not there holds the drain up.
    let mut request = TcpStream::connect(ready["address"].as_str().unwrap()).unwrap();
    request.write_all(b"GET /fs/a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut read_until = |text: &str| log.by_ref().map_while(Result::ok).find(|line| line.contains(text)).unwrap();
    wait_until("the request to be in progress, beside the one that asks", || {
        metric(ready["address"].as_str().unwrap(), "hercules_gateway_requests_in_flight") >= Some(2.0)
    });
    terminate(&child);
    read_until("stopping");
    assert!(child.try_wait().unwrap().is_none(), "it drains");
    terminate(&child);
    read_until("second signal");
    assert_eq!(wait_for(&mut child), 143);
}

#[test]
fn a_server_whose_parent_has_gone_stops() {
    let mut command = with(&["gateway", "--listen", "127.0.0.1:0", "--announce", "--parent-pipe"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    assert!(first_line(child.stdout.take().unwrap()).is_some());
    drop(child.stdin.take());
    assert_eq!(wait_for(&mut child), 0);
}

#[test]
fn the_version_is_told_to_people_and_to_programs() {
    let json: Value = serde_json::from_str(&succeeded(run(&["version", "--json"]))).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["protocol"], wire::frame::PROTOCOL);
    assert!(succeeded(run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_know_every_command() {
    let script = succeeded(run(&["completions", "bash"]));
    for command in ["chunkserver", "undelete", "bench"] {
        assert!(script.contains(command), "{command}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = with(&["completions", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
