//! Starting and stopping a chunkserver: in which order things are touched, and what each refusal says.
//!
//! Ports first, because they are the commonest thing to be wrong; then the disk, without changing it;
//! then the master, who names a fresh server; then recovery; then the shards; only then is anybody
//! served.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use engine::runtime::Backend;
use engine::runtime::shard::{ShardConfig, Spawn};
use engine::store::{DiskLock, OpenError, ReadConfig, ShardSeed, Store};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle as Task;
use wire::{ClusterId, Kind, ServerId, handshake};

use super::board::{Board, Found};
use super::budget::Budget;
use super::config::Config;
use super::disks::Disk;
use super::heartbeat::{self, Conversation, DiskOwner, Introduction, Lost};
use super::hello;
use super::mailbox::{ToControl, ToShard};
use super::open::{self, Recovered, disk_error};
use super::shard::{Me, Shard};
use super::stores::{OnDisk, Stores};
use crate::admin::{self, AdminServer};
use crate::door::Door;
use crate::start::StartError;

/// Messages that wait for a shard.
const MAILBOX_MAX: usize = 256;

/// Messages that wait for the control thread.
const CONTROL_MAX: usize = 1024;

/// A shard's part of one disk.
type Part = (ShardSeed, Arc<Disk>);

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
    /// Held as long as the disks are used.
    _locks: Vec<DiskLock>,
}

/// Starts everything on backend `R`, the one that the configuration names.
pub(crate) async fn launch<R: Spawn>(config: Config) -> Result<Server, StartError> {
    config.check()?;
    let shards = config.shard_count();
    let listener = admin::listen(&config.listen, "data port").await?;
    let address = admin::local_address(&listener)?;
    let found = open::find(&config).await?;
    let board = Board::new(random_u64()?, Door::new(config.cluster_key.clone()));
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
        key: config.cluster_key.clone(),
    };
    let (server, cluster) = match found.owner() {
        Some((root, owner)) => {
            let root = root.to_owned();
            let owner = DiskOwner { server: owner.server, cluster: owner.cluster, disk: owner.disk_uuid };
            refuse_other_cluster(&intro, &owner, &root).await?;
            (owner.server, owner.cluster)
        }
        None => {
            let registered = heartbeat::introduce(&intro).await.map_err(|fault| {
                let what = format!("the master refused to register this server: {fault}");
                let remedy = if fault.kind == Kind::Unauthorized {
                    handshake::REMEDY
                } else {
                    "check --master, and that the data directory is the one you mean"
                };
                StartError::config(what, remedy)
            })?;
            (registered.server, registered.cluster)
        }
    };
    board.set_identity(server, cluster);
    let probed = found.probed.clone();
    let (recovered, missing) = found.recover::<R>(&config, server, cluster).await?;
    tracing::info!(%server, %cluster, runtime = %config.runtime, disks = recovered.len(), "disks recovered");
    let owner = DiskOwner { server, cluster, disk: recovered.first().map_or([0; 16], |first| first.uuid) };
    let summaries = recovered.iter().map(|disk| disk.summary.clone()).collect();
    board.set_found(Found { backend: config.runtime, probed, recovery: summaries });
    let is_incomplete = !missing.is_empty();
    let all = recovered.iter().map(|disk| Arc::clone(&disk.disk)).chain(missing).collect();
    board.set_disks(all);
    let (to_control, from_shards) = mpsc::channel(CONTROL_MAX);
    let mut parts: Vec<Vec<Part>> = (0..shards).map(|_| Vec::new()).collect();
    let mut locks = Vec::new();
    for Recovered { disk, seeds, lock, .. } in recovered {
        for (part, seed) in parts.iter_mut().zip(seeds) {
            part.push((seed, Arc::clone(&disk)));
        }
        locks.push(lock);
    }
    let (threads, mailboxes) = start_shards::<R>(&config, &board, parts, is_incomplete, &to_control).await?;
    board.set_shards(mailboxes);
    let accepting = tokio::spawn(hello::accept(listener, Arc::clone(&board)));
    let conversing = tokio::spawn(heartbeat::converse(intro, owner, Arc::clone(&board), from_shards));
    tracing::info!(%server, %address, shards, "chunkserver serves");
    let started = Started { address, admin: admin.as_ref().map(AdminServer::address), server, cluster };
    Ok(Server { started, board, threads, accepting, conversing, admin, _locks: locks })
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
            Err(Lost::Refused(fault)) if fault.kind == Kind::Unauthorized => {
                return Err(StartError::config(fault.text, handshake::REMEDY));
            }
            Err(error) => tracing::warn!(address, %error, "master not reached, starting without it"),
        }
    }
    Ok(())
}

async fn start_shards<R: Spawn>(
    config: &Config,
    board: &Board,
    parts: Vec<Vec<Part>>,
    is_incomplete: bool,
    to_control: &mpsc::Sender<ToControl>,
) -> Result<(Vec<ShardThread>, Vec<mpsc::Sender<ToShard>>), StartError> {
    let shards = config.shard_count();
    let memory = usize::try_from(config.memory_per_shard).unwrap_or(usize::MAX);
    let (scrub_every, idle_seal) = (config.scrub_every, config.idle_seal);
    let key = config.cluster_key.as_ref();
    let (reads, budget) = (config.reads(), config.budget());
    let cores = if config.pin { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
    let (mut threads, mut mailboxes, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    for (index, part) in (0_u32..).zip(parts) {
        let me = Me { server: board.server(), cluster: board.cluster(), boot: board.boot, shard: index, shards };
        let core = cores.get(index as usize).map(|core| core.id);
        let (mailbox, mail) = mpsc::channel(MAILBOX_MAX);
        let (ready, is_ready) = oneshot::channel();
        let control = to_control.clone();
        let key = key.cloned();
        let work = move |rt: R| async move {
            match start_stores(&rt, part, reads, is_incomplete).await {
                Ok(stores) => {
                    let budget = Budget::new(budget);
                    let shard = Shard::new(rt, me, stores, budget, control);
                    shard.scrub_every(scrub_every);
                    shard.idle_seal(idle_seal);
                    shard.use_key(key);
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

async fn start_stores<R: Spawn>(
    rt: &R,
    part: Vec<Part>,
    reads: ReadConfig,
    is_incomplete: bool,
) -> Result<Stores<R>, OpenError> {
    let mut disks = Vec::new();
    for (seed, disk) in part {
        disks.push(OnDisk { store: Store::start_with(rt.clone(), seed, reads).await?, disk });
    }
    Ok(Stores::new(disks, is_incomplete))
}

/// Starting a thread waits for its ring: not on the control thread, which must stay awake.
pub(crate) async fn spawn<R, F, W>(config: ShardConfig, work: F) -> Result<ShardThread, StartError>
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

pub(crate) async fn join(threads: Vec<ShardThread>) {
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

fn random_u64() -> Result<u64, StartError> {
    getrandom::u64().map_err(|error| StartError::unavailable(format!("no random numbers: {error}"), "try again"))
}
