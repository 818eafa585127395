//! `hercules dev`: a whole cluster on this machine, of real processes on real ports.
//!
//! [`plan`] says which servers there are; [`server`] keeps one of them running; this file is the
//! order in which they start, and the end.

mod plan;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use engine::runtime::Backend;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use wire::ClusterKey;
use wire::heartbeat::Liveness;

use crate::exit::{Code, Failure};
use crate::key::{self, KeyFile};
use crate::output::{self, Output};
use crate::roles::Ready;
use crate::roles::chunkserver::parse_runtime;
use crate::signals::Stop;
use crate::size;
use plan::{Plan, Spec};
use server::{Event, Server};

/// Time for the chunkservers to be registered, after they are ready.
const REGISTER_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at the cluster while it comes up.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Run a cluster on this machine: a master, chunkservers and a gateway; Ctrl-C stops all of them
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  hercules dev
  hercules dev --chunkservers 5 --dir /mnt/fast/data
  hercules dev --ephemeral --json      for tests: temporary data, free ports, events as JSON")]
pub(crate) struct Dev {
    /// How many chunkservers
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u16).range(1..=64), value_name = "N")]
    chunkservers: u16,
    /// Where the data is kept [default: data; with --ephemeral the folder for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Temporary data, removed at the end, and free ports
    #[arg(long)]
    ephemeral: bool,
    /// Replicas of each chunk [default: 3, or as many as there are chunkservers]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8), value_name = "N")]
    replicas: Option<u32>,
    /// Shards of each chunkserver [default: the cores divided by the chunkservers, at least 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024), value_name = "N")]
    shards: Option<u32>,
    /// Runtime of the chunkservers
    #[arg(long, value_parser = parse_runtime(), value_name = "NAME")]
    runtime: Option<Backend>,
    /// Log area of each shard's journal, when the data is new
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    journal: Option<u64>,
    /// Leave a server that has died dead
    #[arg(long)]
    no_restart: bool,
    /// Stop when standard input ends
    #[arg(long, hide = true)]
    parent_pipe: bool,
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    output: Output,
}

impl Dev {
    /// Runs it until it is told to stop.
    ///
    /// # Errors
    ///
    /// When a server does not start: with its exit code, after its own message.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut stop = Stop::listen(self.parent_pipe)?;
        let home = Home::make(&self)?;
        let key_file = self.key_file(&home)?;
        let key = KeyFile::at(key_file.clone()).read()?;
        let plan = self.plan(home.path.clone(), key_file);
        let (events, mut happened) = mpsc::channel(64);
        let mut cluster = Running { dev: self, key, servers: Vec::new(), events };
        let begun = tokio::select! {
            begun = cluster.begin(&plan) => begun.map(|()| None),
            reason = stop.asked() => Ok(Some(reason)),
        };
        let ended = match begun {
            Ok(None) => cluster.watch(&mut stop, &mut happened).await,
            Ok(Some(_reason)) => Ok(()),
            Err(failure) => Err(failure),
        };
        cluster.end(stop).await;
        ended
    }

    /// The key of the cluster: the one that was named, or one in its folder, made when it is new.
    fn key_file(&self, home: &Home) -> Result<PathBuf, Failure> {
        if let Some(path) = self.key.path() {
            return Ok(std::path::absolute(path)?);
        }
        let path = home.path.join("cluster.key");
        key::make(&path)?;
        Ok(path)
    }

    fn plan(&self, dir: PathBuf, key_file: PathBuf) -> Plan {
        let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        Plan::new(self, dir, key_file, cores)
    }
}

/// The folder of the cluster; a temporary one goes with it.
struct Home {
    path: PathBuf,
    temporary: bool,
}

impl Home {
    fn make(dev: &Dev) -> Result<Self, Failure> {
        let dir = match &dev.dir {
            Some(dir) => std::path::absolute(dir)?,
            None if dev.ephemeral => std::env::temp_dir(),
            None => std::path::absolute("data")?,
        };
        let path = if dev.ephemeral { dir.join(format!("hercules-dev-{}", std::process::id())) } else { dir };
        let home = Self { path, temporary: dev.ephemeral };
        std::fs::create_dir_all(&home.path).map_err(|error| {
            Failure::new(Code::Config, format!("cannot make {}: {error}", home.path.display()))
                .remedy("choose a folder that you may write to by --dir")
        })?;
        Ok(home)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The servers that have been started, in that order.
struct Running {
    dev: Dev,
    key: Option<ClusterKey>,
    servers: Vec<Server>,
    events: mpsc::Sender<Event>,
}

impl Running {
    /// Starts everything and says so when the cluster serves.
    async fn begin(&mut self, plan: &Plan) -> Result<(), Failure> {
        self.start(vec![plan.master()]).await?;
        let master = self.ready("master").address;
        self.start(plan.chunkservers(&master)).await?;
        self.start(vec![plan.gateway(&master)]).await?;
        self.registered(&master, usize::from(self.dev.chunkservers)).await?;
        if self.dev.output.json {
            return output::line(self.json(plan));
        }
        output::line(welcome(&self.ready("gateway").address, &master, plan))
    }

    /// Starts some servers at once, and waits until all are ready.
    async fn start(&mut self, specs: Vec<Spec>) -> Result<(), Failure> {
        let started = specs.into_iter().map(|spec| Server::start(spec, !self.dev.no_restart, self.events.clone()));
        for server in join_all(started).await {
            self.servers.push(server?);
        }
        Ok(())
    }

    fn ready(&self, name: &str) -> Ready {
        let found = self.servers.iter().find(|server| server.name() == name).map(Server::ready);
        assert!(found.is_some(), "{name} has been started before it is asked about");
        found.unwrap_or_else(|| unreachable!())
    }

    /// Waits until the master has heard from all chunkservers.
    async fn registered(&self, master: &str, want: usize) -> Result<(), Failure> {
        let mut config = client::Config::new(vec![master.to_owned()]);
        config.cluster_key.clone_from(&self.key);
        let client = client::Client::new(config);
        let all_alive = async {
            loop {
                let cluster = client.cluster().await?;
                let alive = cluster.servers.iter().filter(|server| server.liveness == Liveness::Alive).count();
                if alive >= want {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(REGISTER_LIMIT, all_alive).await.unwrap_or_else(|_elapsed| {
            Err(Failure::new(
                Code::Unavailable,
                format!("{want} chunkservers did not register within {REGISTER_LIMIT:?}"),
            )
            .remedy("their log above says why"))
        })
    }

    /// Tells what happens to the servers, until it is time to stop.
    async fn watch(&self, stop: &mut Stop, happened: &mut mpsc::Receiver<Event>) -> Result<(), Failure> {
        loop {
            let event = tokio::select! {
                event = happened.recv() => event,
                _reason = stop.asked() => return Ok(()),
            };
            let Some(event) = event else { return Ok(()) };
            if self.dev.output.json {
                output::line(event.json())?;
            } else {
                eprintln!("hercules dev: {event}");
            }
        }
    }

    /// Stops the gateway, then the chunkservers, then the master; a second signal kills them.
    async fn end(self, mut stop: Stop) {
        if !self.dev.output.json {
            eprintln!("hercules dev: stopping; Ctrl-C again kills");
        }
        let (masters, others): (Vec<_>, Vec<_>) = self.servers.into_iter().partition(|s| s.name() == "master");
        let (chunkservers, gateways): (Vec<_>, Vec<_>) = others.into_iter().partition(|s| s.name() != "gateway");
        let mut killed = false;
        for group in [gateways, chunkservers, masters] {
            let pids: Vec<u32> = group.iter().map(|server| server.ready().pid).collect();
            let ended = async { join_all(group.into_iter().map(Server::stop)).await };
            tokio::pin!(ended);
            if killed {
                server::kill_all(&pids);
            }
            tokio::select! {
                _ = &mut ended => {}
                _ = stop.asked(), if !killed => {
                    killed = true;
                    server::kill_all(&pids);
                    ended.await;
                }
            }
        }
    }

    fn json(&self, plan: &Plan) -> Value {
        let servers = self.servers.iter().map(Server::json);
        json!({
            "event": "ready",
            "pid": std::process::id(),
            "dir": plan.dir(),
            "cluster_key_file": plan.key_file(),
            "master": self.ready("master").address,
            "gateway": format!("http://{}", self.ready("gateway").address),
            "servers": servers.collect::<Vec<_>>(),
        })
    }
}

/// What to type next.
fn welcome(gateway: &str, master: &str, plan: &Plan) -> String {
    let flag = if master == "127.0.0.1:9090" { String::new() } else { format!(" --master {master}") };
    let port = gateway.rsplit_once(':').map_or(gateway, |(_, port)| port);
    format!(
        "
  Hercules is up: {}, {} replicas, data in {}

  try   curl -T README.md http://localhost:{port}/fs/hello
        curl http://localhost:{port}/fs/hello
        export HERCULES_CLUSTER_KEY_FILE={}
        hercules put{flag} README.md /readme
        hercules stat --chunks{flag} /readme
        hercules status{flag}
        hercules bench put{flag} --size 64M --count 16

  Ctrl-C stops everything; the data stays.
",
        plan.shape(),
        plan.replicas(),
        plan.dir().display(),
        plan.key_file().display(),
    )
}
