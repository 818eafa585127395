//! The master: names, placement and repair; never data.
//!
//! [`state`] is the one state machine, [`core`] the line that applies, logs and answers. [`seal`],
//! [`placement`] and [`liveness`] decide without I/O; their drivers are `sealing`, `opening` and
//! `reports`. `connection` is the port, `files` and `locate` answer clients, `gc` frees what was deleted,
//! `repair` keeps as many replicas as are wanted.

mod connection;
pub mod core;
pub mod entry;
mod files;
mod frames;
mod gc;
mod holders;
pub mod liveness;
mod locate;
mod metrics;
mod opening;
pub mod oplog;
mod peers;
pub mod placement;
mod reopening;
mod repair;
mod reports;
pub mod seal;
mod sealing;
mod shared;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of a simulation are small")]
pub(crate) mod simulated;
mod soft;
pub mod state;
pub mod store;
mod unfit;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::mpsc;
use tracing::{info, warn};
use wire::ClusterKey;

use crate::StartError;
use crate::admin::{self, AdminServer};
use crate::clock;
use core::{Core, Ending, Started, Threads};
use entry::Effect;
use peers::Identity;
use shared::Master;
use state::State;

/// How a master runs. All of it is checked by [`start`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens for clients and chunkservers, `host:port`.
    pub listen: String,
    /// Where others reach it, when that is not where it listens; `host` or `host:port`.
    pub advertise: Option<String>,
    /// Where it answers HTTP for health and metrics, `host:port`; without, it does not.
    pub admin: Option<String>,
    /// Where its state is. Made when it is not there.
    pub data_dir: PathBuf,
    /// Replicas wanted of new chunks, 1 to 8. Default 3.
    pub replicas: u32,
    /// Fewest replicas a write may be acknowledged with, 1 to `replicas`. Default 2.
    pub min_ack_replicas: u32,
    /// A server silent for longer is dead. Default 30 s.
    pub dead_after: Duration,
    /// How long deleted files can be brought back. Default 72 h.
    pub trash_keep: Duration,
    /// How long the bytes of a condemned replica are kept. Default 24 h.
    pub condemned_keep: Duration,
    /// How long an upload may stay without a name. Default 24 h.
    pub upload_keep: Duration,
    /// How often the trash is looked through. Default 10 s.
    pub gc_every: Duration,
    /// How often the state is checkpointed, when it has changed. Default 5 s.
    pub checkpoint_every: Duration,
    /// Connections served at a time. Default 4,096.
    pub connections_max: usize,
    /// What both sides of every connection must prove; `None`: connections are taken from anybody.
    pub cluster_key: Option<ClusterKey>,
}

impl Config {
    /// Defaults for this place.
    #[must_use]
    pub fn new(listen: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        Self {
            listen: listen.into(),
            advertise: None,
            admin: None,
            data_dir: data_dir.into(),
            replicas: 3,
            min_ack_replicas: 2,
            dead_after: Duration::from_secs(30),
            trash_keep: hours(72),
            condemned_keep: hours(24),
            upload_keep: hours(24),
            gc_every: Duration::from_secs(10),
            checkpoint_every: Duration::from_secs(5),
            connections_max: 4096,
            cluster_key: None,
        }
    }

    fn check(&self) -> Result<(), StartError> {
        let limit = u32::try_from(wire::limits::MEMBERS_MAX).unwrap_or(u32::MAX);
        if self.replicas == 0 || self.replicas > limit {
            return Err(StartError::config(
                format!("{} replicas are not possible", self.replicas),
                format!("choose 1 to {limit}; 3 is usual"),
            ));
        }
        if self.min_ack_replicas == 0 || self.min_ack_replicas > self.replicas {
            return Err(StartError::config(
                format!("a write cannot need {} of {} replicas", self.min_ack_replicas, self.replicas),
                format!("choose 1 to {}; 2 keeps what was acknowledged when one disk fails", self.replicas),
            ));
        }
        if self.connections_max == 0 || self.checkpoint_every.is_zero() || self.gc_every.is_zero() {
            return Err(StartError::config("an interval or a limit is zero", "leave it out to get its default"));
        }
        Ok(())
    }
}

/// A master at work. To be stopped by [`Running::stop`]; dropping it leaves it at work.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its admin port is, when it has one.
    pub admin: Option<SocketAddr>,
    master: Arc<Master>,
    threads: Threads,
    admin_server: Option<AdminServer>,
    lock: File,
}

/// Starts a master: recovers its state, begins a new term, listens.
///
/// # Errors
///
/// [`StartError`] with a remedy. Nothing was changed, unless the new term was begun already.
pub async fn start(config: Config) -> Result<Running, StartError> {
    config.check()?;
    let lock = lock_data_dir(&config.data_dir)?;
    // Before the state is touched: a port in use must not cost a term.
    let listener = admin::listen(&config.listen, "master").await?;
    let address = admin::local_address(&listener)?;
    let boot = u64::from_le_bytes(core::random());
    let (dir, every) = (config.data_dir.clone(), config.checkpoint_every);
    let started = tokio::task::spawn_blocking(move || Core::start(&dir, every, boot)).await;
    let Started { core, threads, effects } = started
        .map_err(|error| StartError::unavailable(format!("recovery ended: {error}"), "look at the log above"))??;
    let begun = core::begin(&core).await;
    let (cluster, term) = begun.map_err(|fault| {
        StartError::config(format!("no new term can be begun: {fault}"), "restore the data directory from a backup")
    })?;
    let identity = Identity { boot, cluster, term };
    let first_chunk = core.look(State::next_chunk);
    let admin_config = config.admin.clone();
    let advertise = config.advertise.clone();
    let master = Arc::new(Master::new(config, core, identity, first_chunk, clock::now()));
    let mut admin_server = None;
    if let Some(listen) = &admin_config {
        let server = admin::serve(listen, Arc::new(metrics::View(Arc::clone(&master)))).await;
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                threads.stop(Ending::Orderly).await;
                return Err(error);
            }
        };
        *shared::lock(&master.admin) = advertised(advertise.as_deref(), server.address());
        admin_server = Some(server);
    }
    master.spawn(Arc::clone(&master).accept(listener));
    master.spawn(Arc::clone(&master).watch());
    master.spawn(Arc::clone(&master).collect_garbage());
    master.spawn(Arc::clone(&master).look_after_replicas());
    master.spawn(Arc::clone(&master).carry_out(effects));
    info!(%cluster, term = term.0, %address, "master is ready");
    let admin = admin_server.as_ref().map(AdminServer::address);
    Ok(Running { address, admin, master, threads, admin_server, lock })
}

impl Running {
    /// Stops: closes the port, makes durable what was accepted, writes a checkpoint.
    pub async fn stop(self) {
        self.end(Ending::Orderly).await;
    }

    /// Stops as a crash would leave it, without a checkpoint: for tests of recovery.
    pub async fn halt(self) {
        self.end(Ending::Abrupt).await;
    }

    async fn end(self, ending: Ending) {
        let Self { master, threads, admin_server, lock, .. } = self;
        if let Some(server) = admin_server {
            server.stop().await;
        }
        master.stop_tasks().await;
        threads.stop(ending).await;
        drop(lock);
    }
}

impl Master {
    /// Does what durable entries ask for.
    async fn carry_out(self: Arc<Self>, mut effects: mpsc::Receiver<Effect>) {
        while let Some(effect) = effects.recv().await {
            match effect {
                Effect::Changed(_) => self.wake_waiters(),
                Effect::Confirm(chunk) => self.confirm_all(chunk),
            }
        }
    }
}

/// The admin address for others: the advertised host with the admin port, or what it listens on.
fn advertised(advertise: Option<&str>, listening: SocketAddr) -> String {
    let host = advertise.map(|address| address.rsplit_once(':').map_or(address, |(host, _)| host));
    host.map_or(listening.to_string(), |host| format!("{host}:{}", listening.port()))
}

/// Makes the data directory, and takes it for this process.
fn lock_data_dir(dir: &Path) -> Result<File, StartError> {
    let failed = |error: &dyn std::fmt::Display| {
        StartError::config(
            format!("cannot use data directory {}: {error}", dir.display()),
            "give a directory that this user may write to, or change its owner",
        )
    };
    fs::create_dir_all(dir).map_err(|error| failed(&error))?;
    let above = dir.canonicalize().ok().and_then(|dir| dir.parent().map(Path::to_path_buf));
    above.map_or(Ok(()), |above| File::open(above)?.sync_all()).map_err(|error| failed(&error))?;
    let path = dir.join("LOCK");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|error| failed(&error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => Err(StartError::unavailable(
            format!("data directory {} belongs to a running master", dir.display()),
            "stop that one first, or give this one a directory of its own",
        )),
        Err(error) => {
            warn!(%error, "flock failed");
            Err(failed(&error))
        }
    }
}
