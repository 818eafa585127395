//! Starting and stopping a chunkserver: in which order things are touched, and what each refusal says.
//!
//! Ports first, because they are the commonest thing to be wrong; then the disk, without changing it;
//! then the master, who names a fresh server; then recovery; then the shards; only then is anybody
//! served.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use engine::probe::{Check, Verdict, probe};
use engine::runtime::Backend;
use engine::runtime::shard::{ShardConfig, Spawn};
use engine::store::{self, DiskConfig, DiskLock, OpenError, ShardSeed, Store};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle as Task;
use wire::{ClusterId, ServerId};

use super::board::Board;
use super::budget::Budget;
use super::config::Config;
use super::heartbeat::{self, Conversation, DiskOwner, Introduction, Lost};
use super::hello;
use super::mailbox::{ToControl, ToShard};
use super::shard::{Me, Shard};
use crate::admin::{self, AdminServer};
use crate::clock;
use crate::start::StartError;

/// Messages that wait for a shard.
const MAILBOX_MAX: usize = 256;

/// Messages that wait for the control thread.
const CONTROL_MAX: usize = 1024;

/// Recovery reads journals with buffers of its own.
const RECOVERY_MEMORY: usize = 64 << 20;

type ShardThread = JoinHandle<std::io::Result<()>>;

/// What a started chunkserver says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) address: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) server: ServerId,
    pub(crate) cluster: ClusterId,
}

/// A chunkserver that serves.
pub(crate) struct Server {
    pub(crate) started: Started,
    board: Arc<Board>,
    threads: Vec<ShardThread>,
    accepting: Task<()>,
    conversing: Task<()>,
    admin: Option<AdminServer>,
    /// Held as long as the disk is used.
    _lock: DiskLock,
}

/// Starts everything on backend `R`, the one that the configuration names.
pub(crate) async fn launch<R: Spawn>(config: Config) -> Result<Server, StartError> {
    config.check()?;
    let shards = config.shard_count();
    let listener = admin::listen(&config.listen, "data port").await?;
    let address = admin::local_address(&listener)?;
    let lock = DiskLock::acquire(&config.data_dir).map_err(disk_error)?;
    let probed = probe_machine(&config).await?;
    let board = Board::new(random_u64()?);
    let admin = match &config.admin {
        Some(address) => Some(admin::serve(address, Arc::clone(&board)).await?),
        None => None,
    };
    let intro = Introduction {
        masters: config.masters.clone(),
        listen: address,
        advertise: config.advertise.clone(),
        admin: admin.as_ref().map(AdminServer::address),
        boot: board.boot,
        shards,
        zone: config.zone.clone(),
    };
    let known = store::identity(&config.data_dir).map_err(disk_error)?;
    let (server, cluster) = match known {
        Some(owner) => {
            let owner = DiskOwner { server: owner.server, cluster: owner.cluster, disk: owner.disk_uuid };
            refuse_other_cluster(&intro, &owner, &config.data_dir).await?;
            (owner.server, owner.cluster)
        }
        None => {
            let registered = heartbeat::introduce(&intro).await.map_err(|fault| {
                let what = format!("the master refused to register this server: {fault}");
                StartError::config(what, "check --master, and that the data directory is the one you mean")
            })?;
            (registered.server, registered.cluster)
        }
    };
    board.set_identity(server, cluster);
    let disk = DiskConfig {
        root: config.data_dir.clone(),
        cluster,
        server,
        shards,
        ring_bytes: config.ring_bytes,
        unix_seconds: clock::unix_ms() / 1000,
    };
    let recovered = recover::<R>(disk).await?;
    let summary = recovered.summary;
    tracing::info!(%server, %cluster, ?summary, runtime = %config.runtime, "disk recovered");
    board.set_found(config.runtime, probed, summary);
    let disk_uuid = match store::identity(&config.data_dir).map_err(disk_error)? {
        Some(owner) => owner.disk_uuid,
        None => return Err(StartError::unavailable("the disk has lost its identity", "look at the disk")),
    };
    let (to_control, from_shards) = mpsc::channel(CONTROL_MAX);
    let (threads, mailboxes) = start_shards::<R>(&config, &board, recovered.seeds, &to_control).await?;
    board.set_shards(mailboxes);
    let owner = DiskOwner { server, cluster, disk: disk_uuid };
    let accepting = tokio::spawn(hello::accept(listener, Arc::clone(&board)));
    let conversing = tokio::spawn(heartbeat::converse(intro, owner, Arc::clone(&board), from_shards));
    tracing::info!(%server, %address, shards, "chunkserver serves");
    let started = Started { address, admin: admin.as_ref().map(AdminServer::address), server, cluster };
    Ok(Server { started, board, threads, accepting, conversing, admin, _lock: lock })
}

/// What the machine and the folder are worth; refuses what cannot work, with every reason at once.
async fn probe_machine(config: &Config) -> Result<Vec<Check>, StartError> {
    let (root, backend, shards) = (config.data_dir.clone(), config.runtime, config.shard_count());
    let memory = config.memory_per_shard;
    let probing = tokio::task::spawn_blocking(move || probe(&root, backend, shards, memory));
    let checks = probing.await.map_err(|error| StartError::unavailable(format!("no probe: {error}"), "try again"))?;
    for check in &checks {
        let Check { name, found, remedy, .. } = check;
        match check.verdict {
            Verdict::Ok => tracing::info!(name, found, "probed"),
            Verdict::Warning => tracing::warn!(name, found, remedy, "probed"),
            Verdict::Failed => tracing::error!(name, found, remedy, "probed"),
        }
    }
    let failed = || checks.iter().filter(|check| check.verdict == Verdict::Failed);
    if failed().next().is_none() {
        return Ok(checks);
    }
    let all = |part: fn(&Check) -> String| failed().map(part).collect::<Vec<_>>().join("; ");
    Err(StartError::config(all(|check| format!("{}: {}", check.name, check.found)), all(|check| check.remedy.clone())))
}

/// A disk of another cluster is refused as soon as it is known. A master that is not there now does
/// not keep a known disk from serving what it holds.
async fn refuse_other_cluster(intro: &Introduction, owner: &DiskOwner, root: &Path) -> Result<(), StartError> {
    for address in &intro.masters {
        match Conversation::open(address, intro, owner).await {
            Ok(_) => return Ok(()),
            Err(lost @ Lost::OtherCluster { .. }) => {
                let what = format!("{}: {lost}", root.display());
                return Err(StartError::config(
                    what,
                    "point --master at the cluster this disk belongs to, or give an empty data directory",
                ));
            }
            Err(error) => tracing::warn!(address, %error, "master not reached, starting without it"),
        }
    }
    Ok(())
}

/// Recovery runs on a shard thread of its own, before any shard serves.
async fn recover<R: Spawn>(disk: DiskConfig) -> Result<store::Recovered, StartError> {
    let (done, outcome) = oneshot::channel();
    let thread =
        spawn::<R, _, _>(ShardConfig { index: 0, core: None, memory: RECOVERY_MEMORY }, move |rt: R| async move {
            // An error means that the start was given up.
            let _ = done.send(store::recover(&rt, &disk).await);
        })
        .await?;
    let outcome = outcome.await;
    join(vec![thread]).await;
    match outcome {
        Ok(recovered) => recovered.map_err(disk_error),
        Err(_) => Err(StartError::unavailable("recovery ended without a result", "look at the log before this line")),
    }
}

async fn start_shards<R: Spawn>(
    config: &Config,
    board: &Board,
    seeds: Vec<ShardSeed>,
    to_control: &mpsc::Sender<ToControl>,
) -> Result<(Vec<ShardThread>, Vec<mpsc::Sender<ToShard>>), StartError> {
    let shards = config.shard_count();
    let memory = usize::try_from(config.memory_per_shard).unwrap_or(usize::MAX);
    let (reads, budget) = (config.reads(), config.budget());
    let cores = if config.pin { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
    let (mut threads, mut mailboxes, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    for (index, seed) in (0_u32..).zip(seeds) {
        let me = Me { server: board.server(), cluster: board.cluster(), boot: board.boot, shard: index, shards };
        let core = cores.get(index as usize).map(|core| core.id);
        let (mailbox, mail) = mpsc::channel(MAILBOX_MAX);
        let (ready, is_ready) = oneshot::channel();
        let control = to_control.clone();
        let work = move |rt: R| async move {
            match Store::start_with(rt.clone(), seed, reads).await {
                Ok(store) => {
                    let budget = Budget::new(budget);
                    let shard = Shard::new(rt, me, store, budget, control);
                    // An error means that the start was given up; the mailbox ends the shard then.
                    let _ = ready.send(Ok(()));
                    shard.run(mail).await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        threads.push(spawn::<R, _, _>(ShardConfig { index, core, memory }, work).await?);
        mailboxes.push(mailbox);
        waiting.push(is_ready);
    }
    for is_ready in waiting {
        match is_ready.await {
            Ok(outcome) => outcome.map_err(disk_error)?,
            Err(_) => return Err(StartError::unavailable("a shard ended at its start", "look at the log")),
        }
    }
    Ok((threads, mailboxes))
}

/// Starting a thread waits for its ring: not on the control thread, which must stay awake.
async fn spawn<R, F, W>(config: ShardConfig, work: F) -> Result<ShardThread, StartError>
where
    R: Spawn,
    F: FnOnce(R) -> W + Send + 'static,
    W: Future<Output = ()> + 'static,
{
    let spawned = tokio::task::spawn_blocking(move || R::spawn_shard(config, work)).await;
    let spawned = spawned.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    spawned.map_err(|error| {
        StartError::config(
            format!("cannot start a shard: {error}"),
            format!("allow io_uring and locked memory for this process, or choose --runtime {}", Backend::MonoioEpoll),
        )
    })
}

async fn join(threads: Vec<ShardThread>) {
    let joined = tokio::task::spawn_blocking(move || {
        for thread in threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "shard ended with an error"),
                Err(_) => tracing::error!("shard panicked"),
            }
        }
    });
    // The blocking task does not panic and is never cancelled.
    let _ = joined.await;
}

impl Server {
    /// Takes no more connections, lets the shards finish and make everything durable.
    pub(crate) async fn stop(self) {
        self.accepting.abort();
        self.board.stop_shards().await;
        join(self.threads).await;
        self.conversing.abort();
        if let Some(admin) = self.admin {
            admin.stop().await;
        }
        tracing::info!(server = %self.started.server, "chunkserver stopped");
    }
}

fn disk_error(error: OpenError) -> StartError {
    StartError::config(error.what, error.remedy)
}

fn random_u64() -> Result<u64, StartError> {
    getrandom::u64().map_err(|error| StartError::unavailable(format!("no random numbers: {error}"), "try again"))
}
