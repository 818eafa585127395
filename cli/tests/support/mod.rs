//! A cluster of real processes for tests: every server by itself, with a handle to kill, pause and
//! restart each. Free ports, temporary data on the disk of the target folder. When a test fails,
//! the logs of all servers are printed. Blocking calls only, so that it serves any kind of test.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene should fail loudly")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use engine::runtime::Backend;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest wait for anything. A test that waits longer has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// Bytes at the end of each log that a failed test shows.
const LOG_TAIL: u64 = 16 << 10;

/// The binary under test.
pub(crate) fn hercules() -> Command {
    program(&[])
}

/// The binary behind other programs. What developers have set for a cluster of their own must not
/// change a test.
fn program(wrapper: &[String]) -> Command {
    let mut line: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    line.push(env!("CARGO_BIN_EXE_hercules"));
    let mut command = Command::new(line[0]);
    command.args(&line[1..]);
    let original = ["SERVER_TYPE", "SERVER_ADDRESS", "MASTER_ADDR", "GATEWAY_ADDR", "ROOT_DIR", "LOG_LEVEL"];
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    for name in names.filter(|name| name.starts_with("HERCULES_") || original.contains(&name.as_str())) {
        command.env_remove(name);
    }
    command
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) chunkservers: usize,
    pub(crate) replicas: u32,
    pub(crate) shards: u32,
    pub(crate) runtime: String,
    /// Log area of each shard's journal.
    pub(crate) journal: String,
    /// Silence after which a chunkserver is dead.
    pub(crate) dead_after: String,
    /// More flags of the master.
    pub(crate) master_args: Vec<String>,
    /// More flags of every chunkserver.
    pub(crate) chunkserver_args: Vec<String>,
    /// Programs in front of every chunkserver, such as `strace -f -o FILE`.
    pub(crate) chunkserver_wrapper: Vec<String>,
    pub(crate) log_level: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chunkservers: 3,
            replicas: 3,
            shards: 2,
            runtime: Backend::default().to_string(),
            journal: "32M".into(),
            dead_after: "5s".into(),
            master_args: Vec::new(),
            chunkserver_args: Vec::new(),
            chunkserver_wrapper: Vec::new(),
            log_level: "info".into(),
        }
    }
}

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) pid: u32,
    pub(crate) address: String,
    pub(crate) admin: String,
}

/// One server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    /// Its folder; of a gateway, where its log is.
    pub(crate) dir: PathBuf,
    pub(crate) ready: Ready,
    wrapper: Vec<String>,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

/// A running cluster. Dropping it kills every process.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) master: Server,
    pub(crate) chunkservers: Vec<Server>,
    pub(crate) gateway: Server,
    home: tempfile::TempDir,
}

impl Cluster {
    /// Master, chunkservers, gateway; returns when all chunkservers are registered.
    pub(crate) fn start(options: &Options) -> Self {
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let common = |extra: &[&str]| {
            let mut args: Vec<String> = extra.iter().map(ToString::to_string).collect();
            args.extend(["--log-level", &options.log_level, "--grace", "20s"].map(String::from));
            args
        };
        let mut args = common(&["--replicas", &options.replicas.to_string(), "--dead-after", &options.dead_after]);
        args.extend(options.master_args.clone());
        let master = Server::new("master", "master", home.path(), &[], args);
        let address = master.ready.address.clone();
        // At once: each has its journals to make.
        let started: Vec<_> = (1..=options.chunkservers)
            .map(|number| {
                let shards = options.shards.to_string();
                let mut args = common(&["--master", &address, "--shards", &shards, "--runtime", &options.runtime]);
                args.extend(["--journal", &options.journal, "--pin", "false"].map(String::from));
                args.extend(options.chunkserver_args.clone());
                let (home, wrapper) = (home.path().to_owned(), options.chunkserver_wrapper.clone());
                thread::spawn(move || {
                    Server::new(&format!("chunkserver{number}"), "chunkserver", &home, &wrapper, args)
                })
            })
            .collect();
        let chunkservers = started.into_iter().map(|thread| thread.join().unwrap()).collect();
        let gateway = Server::new("gateway", "gateway", home.path(), &[], common(&["--master", &address]));
        let cluster = Self { master, chunkservers, gateway, home };
        cluster.wait_alive(options.chunkservers);
        cluster
    }

    /// Three chunkservers, three replicas.
    pub(crate) fn usual() -> Self {
        Self::start(&Options::default())
    }

    /// A folder that goes with the cluster.
    pub(crate) fn scratch(&self) -> &Path {
        self.home.path()
    }

    /// A client library of its own for this cluster.
    pub(crate) fn client(&self) -> client::Client {
        client::Client::new(client::Config::new(vec![self.master.ready.address.clone()]))
    }

    /// `http://host:port` of the gateway.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.gateway.ready.address)
    }

    /// The binary, told which cluster: add a subcommand and its arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = hercules();
        command.env("HERCULES_MASTER", &self.master.ready.address);
        command
    }

    /// Runs a command to its end and asserts that it succeeded; gives what it printed.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        succeeded(self.command().args(args).output().unwrap())
    }

    /// The same with `--json`, parsed.
    pub(crate) fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        serde_json::from_str(&succeeded(self.command().args(args).arg("--json").output().unwrap())).unwrap()
    }

    /// What the master says about the cluster.
    pub(crate) fn status(&self) -> Value {
        self.json(["status"])
    }

    /// Waits until the master hears exactly this many chunkservers.
    pub(crate) fn wait_alive(&self, count: usize) {
        wait_until(&format!("{count} chunkservers alive"), || {
            let Ok(output) = self.command().args(["status", "--json"]).output() else { return false };
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let servers = status["servers"].as_array().cloned().unwrap_or_default();
            servers.iter().filter(|server| server["state"] == "alive").count() == count
        });
    }

    /// Every server, the master first.
    pub(crate) fn servers(&mut self) -> impl Iterator<Item = &mut Server> {
        std::iter::once(&mut self.master).chain(&mut self.chunkservers).chain(std::iter::once(&mut self.gateway))
    }

    /// Kills every process, as a power failure would.
    pub(crate) fn kill_all(&mut self) {
        self.servers().for_each(Server::kill);
    }

    /// Starts every process again, each at its old address, and waits until all chunkservers are registered.
    pub(crate) fn start_all(&mut self) {
        self.servers().for_each(Server::start_again);
        self.wait_alive(self.chunkservers.len());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = thread::panicking();
        for server in self.servers() {
            server.kill();
            if failed {
                eprintln!("---- {} ----\n{}", server.name, server.log_tail());
            }
        }
    }
}

impl Server {
    fn new(name: &str, role: &str, home: &Path, wrapper: &[String], args: Vec<String>) -> Self {
        let dir = home.join(name);
        fs::create_dir_all(&dir).unwrap();
        let mut all: Vec<String> = [role, "--announce", "--parent-pipe"].map(String::from).to_vec();
        if role != "gateway" {
            all.extend(["--data-dir".into(), dir.to_str().unwrap().into()]);
        }
        all.extend(args);
        let mut server = Self {
            name: name.into(),
            log: home.join(format!("{name}.log")),
            dir,
            ready: Ready { pid: 0, address: "127.0.0.1:0".into(), admin: "127.0.0.1:0".into() },
            wrapper: wrapper.to_vec(),
            args: all,
            child: None,
        };
        server.start_again();
        server
    }

    /// Starts it, at its old address when it had one, and waits until it is ready.
    pub(crate) fn start_again(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let mut command = program(&self.wrapper);
        command.args(&self.args).args(["--listen", &self.ready.address]);
        if self.args[0] != "gateway" {
            command.args(["--admin", &self.ready.admin]);
        }
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let line = first_line(child.stdout.take().unwrap());
        self.child = Some(child);
        let Some(ready) = line.and_then(|line| serde_json::from_str::<Value>(&line).ok()) else {
            let log = self.log_tail();
            self.kill();
            panic!("{} did not become ready:\n{log}", self.name);
        };
        self.ready = Ready {
            pid: u32::try_from(ready["pid"].as_u64().unwrap()).unwrap(),
            address: ready["address"].as_str().unwrap().into(),
            admin: ready["admin"].as_str().unwrap().into(),
        };
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_none()))
    }

    /// SIGKILL. Returns when the process is gone; one that is gone already is fine.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            if self.ready.pid != 0 && self.ready.pid != child.id() && child.try_wait().is_ok_and(|s| s.is_none()) {
                // Behind a wrapper.
                self.signal(Signal::KILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM. Returns the exit code when it has drained and exited.
    pub(crate) fn terminate(&mut self) -> i32 {
        self.signal(Signal::TERM);
        wait_for(self.child.take().as_mut().unwrap())
    }

    /// SIGSTOP: a peer that hangs.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.ready.pid).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// The sum of a metric at its admin port; `None` when it has none by this name.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        metric(&self.ready.admin, name)
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let start = log.len().saturating_sub(usize::try_from(LOG_TAIL).unwrap());
        log.get(start..).map_or(log.clone(), ToOwned::to_owned)
    }
}

/// The sum of a metric at `http://address/metrics`; `None` when it has none by this name.
pub(crate) fn metric(address: &str, name: &str) -> Option<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(benches::admin::get(address, "/metrics", LIMIT)).unwrap();
    benches::metrics::sum(&answer.body, name)
}

/// What a command printed, after asserting that it succeeded.
pub(crate) fn succeeded(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

/// Looks again and again until something is so, and panics when it takes longer than [`LIMIT`].
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = now();
    while !is_so() {
        assert!(begun.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The exit code of a child, -1 for a signal. A child that runs longer than [`LIMIT`] is killed and fails the test.
pub(crate) fn wait_for(child: &mut Child) -> i32 {
    let begun = now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        if begun.elapsed() > LIMIT {
            let _ = child.kill();
            panic!("waited {LIMIT:?} for process {} to end", child.id());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The first line that comes out of a pipe; `None` at its end or after [`LIMIT`].
pub(crate) fn first_line(pipe: impl Read + Send + 'static) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(pipe).lines();
        let _ = sender.send(lines.next().and_then(Result::ok));
        // Kept open until the process ends: a server that writes more must not die of a closed pipe.
        lines.for_each(drop);
    });
    receiver.recv_timeout(LIMIT).ok().flatten()
}

#[allow(clippy::disallowed_methods, reason = "a test that waits needs an end")]
fn now() -> Instant {
    Instant::now()
}
