//! A cluster of real processes on loopback: started, killed and restarted by the tests.
//!
//! Every process gets its own folder, a log file and ports that stay its own across restarts. When a
//! test fails the end of every log is printed; when it passes everything is killed and removed.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use client::{Client, Config};
use tempfile::TempDir;
use wire::heartbeat::{ClusterOk, Liveness};

/// How long anything that must happen may take before the test fails. Generous: machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a cluster is made of.
pub struct Plan {
    pub chunkservers: usize,
    pub shards: u32,
    pub gateway: bool,
    pub dead_after: Duration,
    /// Chunkservers scrub by themselves; on a disk with little on it that begins and ends at once.
    pub scrub: bool,
    /// Seconds without work after which a chunk is sealed, when not those of the server.
    pub idle_seal: Option<u32>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            chunkservers: 3,
            shards: 1,
            gateway: true,
            dead_after: Duration::from_secs(3),
            scrub: true,
            idle_seal: None,
        }
    }
}

/// One server process, running or not.
pub struct Server {
    pub name: String,
    pub port: u16,
    pub data: PathBuf,
    admin: String,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Server {
    fn new(dir: &Path, name: &str, role: &str, extra: &[String]) -> Self {
        let port = kept_port();
        let data = dir.join(name);
        fs::create_dir_all(&data).expect("a folder under the temporary one");
        let admin = format!("127.0.0.1:{}", kept_port());
        let mut args = vec![role.to_owned(), format!("--listen=127.0.0.1:{port}")];
        if role != "gateway" {
            args.push(format!("--admin={admin}"));
            args.push(format!("--data-dir={}", data.display()));
        }
        args.extend_from_slice(extra);
        Self { name: name.into(), port, data, admin, args, log: dir.join(format!("{name}.log")), child: None }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it serves its health and metrics.
    pub fn admin(&self) -> String {
        self.admin.clone()
    }

    /// Starts it with the same flags, folder and port as before.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("log file");
        let child = Command::new(env!("CARGO_BIN_EXE_hercules"))
            .args(&self.args)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("the binary was built for this test");
        self.child = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    /// SIGTERM; gives the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take()?;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("kill");
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = child.try_wait().expect("wait") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
        panic!("{} did not end within {PATIENCE:?} of SIGTERM", self.name);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("wait").is_none())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A cluster; everything is killed when it is dropped.
pub struct Cluster {
    pub master: Server,
    pub chunkservers: Vec<Server>,
    pub gateway: Option<Server>,
    pub dir: TempDir,
}

impl Cluster {
    /// Starts one and waits until every server is alive.
    pub async fn start(plan: Plan) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cluster")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("a temporary folder");
        let seconds = plan.dead_after.as_secs();
        let master = Server::new(dir.path(), "master", "master", &[format!("--dead-after={seconds}s")]);
        let to_master = format!("--master={}", master.address());
        let chunkservers = (1..=plan.chunkservers)
            .map(|n| {
                let mut extra = vec![to_master.clone(), format!("--shards={}", plan.shards), "--memory=96M".into()];
                extra.extend((!plan.scrub).then(|| "--scrub-days=0".to_owned()));
                extra.extend(plan.idle_seal.map(|seconds| format!("--idle-seal={seconds}")));
                Server::new(dir.path(), &format!("chunkserver{n}"), "chunkserver", &extra)
            })
            .collect();
        let gateway =
            plan.gateway.then(|| Server::new(dir.path(), "gateway", "gateway", std::slice::from_ref(&to_master)));
        let mut cluster = Self { master, chunkservers, gateway, dir };
        cluster.start_all().await;
        cluster
    }

    /// Starts whatever does not run, and waits until every server is alive.
    pub async fn start_all(&mut self) {
        for server in self.servers_mut() {
            if server.child.is_none() {
                server.start();
            }
        }
        let all = self.chunkservers.len();
        self.wait_alive(all).await;
        if let Some(gateway) = &self.gateway {
            let address = gateway.address();
            wait_for("the gateway to be ready", || {
                let address = address.clone();
                async move { super::http::get(&address, "/readyz").await.is_ok_and(|answer| answer.status == 200) }
            })
            .await;
        }
    }

    pub fn servers_mut(&mut self) -> impl Iterator<Item = &mut Server> {
        std::iter::once(&mut self.master).chain(&mut self.chunkservers).chain(&mut self.gateway)
    }

    /// Kills everything at once, as a power switch would kill processes.
    pub fn kill_all(&mut self) {
        for server in self.servers_mut() {
            server.kill();
        }
    }

    pub fn client(&self) -> Client {
        Client::new(Config::new(vec![self.master.address()]))
    }

    pub fn gateway(&self) -> String {
        self.gateway.as_ref().expect("the plan has a gateway").address()
    }

    /// Waits until the master sees exactly `count` living servers.
    pub async fn wait_alive(&self, count: usize) {
        let client = self.client();
        wait_for(&format!("{count} living chunkservers"), || {
            let client = client.clone();
            async move { client.cluster().await.is_ok_and(|cluster| alive(&cluster) == count) }
        })
        .await;
    }

    /// Runs `hercules` with these arguments against this cluster; its standard output.
    pub async fn hercules(&self, args: &[&str]) -> String {
        let output = self.hercules_output(args).await;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "hercules {args:?} failed: {text}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// As [`Cluster::hercules`], whatever the outcome.
    pub async fn hercules_output(&self, args: &[&str]) -> std::process::Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_hercules"))
            .args(args)
            .env("MASTER_ADDR", self.master.address())
            .stdin(Stdio::null())
            .output()
            .await
            .expect("the binary was built for this test")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
        if std::thread::panicking() {
            for server in self.servers_mut() {
                let log = server.log();
                let lines: Vec<&str> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(60)..];
                eprintln!("==== {} ({} lines)\n{}", server.name, lines.len(), tail.join("\n"));
            }
        }
    }
}

/// Servers the master calls alive.
pub fn alive(cluster: &ClusterOk) -> usize {
    cluster.servers.iter().filter(|server| server.liveness == Liveness::Alive).count()
}

/// Asks again until it is so; fails the test after [`PATIENCE`].
pub async fn wait_for<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let start = Instant::now();
    while !ask().await {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Bytes that repeat nowhere, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A port for a server that keeps it across restarts.
///
/// From below the range that the kernel deals to outgoing connections: between a server's end and
/// its next start no connection of anybody here can take the port. Each test program begins
/// somewhere else, and none hands out the same port twice.
fn kept_port() -> u16 {
    const FIRST: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let outgoing = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = outgoing.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32_768);
    assert!(end > FIRST, "outgoing connections may take any port from {end}: none is left to keep");
    for _ in FIRST..end {
        let step = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(97));
        let port = u16::try_from(FIRST + step % (end - FIRST)).expect("below the outgoing range");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {end}");
}
