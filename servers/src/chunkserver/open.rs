//! Opening the disks of a server: locks, identities, recovery, and what to do when one of them fails.
//!
//! With one disk, or on the first start, everything must work: a mistake is cheaper before there is data.
//! A server that holds data starts with the disks that open, and says which did not and why. Never is a
//! disk of another server taken, nor a second one formatted in the place of one that is not mounted.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::probe::{Check, Verdict, probe_disk, probe_machine};
use engine::runtime::shard::{ShardConfig, Spawn};
use engine::store::{self, DiskConfig, DiskLock, Identity, OpenError, RecoverySummary, ShardSeed};
use futures_util::stream::{self, StreamExt};
use tokio::sync::oneshot;
use wire::{ClusterId, ServerId};

use super::config::Config;
use super::disks::Disk;
use super::launch::{join, spawn};
use crate::clock;
use crate::start::StartError;

/// Recovery reads journals with buffers of its own.
const RECOVERY_MEMORY: usize = 64 << 20;

/// Disks that recover at the same time: each takes the memory above.
const RECOVERIES_MAX: usize = 8;

/// A disk that is locked and looked at.
pub(crate) struct Locked {
    root: PathBuf,
    device: u64,
    lock: DiskLock,
    identity: Option<Identity>,
}

/// The disks of a server before recovery.
pub(crate) struct Found {
    locked: Vec<Locked>,
    missing: Vec<Arc<Disk>>,
    /// What the machine and the disks are worth.
    pub(crate) probed: Vec<Check>,
}

/// A disk that was recovered.
pub(crate) struct Recovered {
    pub(crate) disk: Arc<Disk>,
    pub(crate) summary: RecoverySummary,
    /// Random, made when it was formatted.
    pub(crate) uuid: [u8; 16],
    /// One per shard.
    pub(crate) seeds: Vec<ShardSeed>,
    /// Held as long as the disk is used.
    pub(crate) lock: DiskLock,
}

/// Why a disk cannot be used now.
struct Failed(OpenError);

/// Locks all disks and reads whose they are. Changes nothing on a disk that holds data.
///
/// # Errors
///
/// A disk is in use, or disks of several servers are mixed; a disk fails, and it is the only one or none
/// holds data yet; the machine is not fit.
pub(crate) async fn find(config: &Config) -> Result<Found, StartError> {
    let (config, shards) = (config.clone(), config.shard_count());
    let finding = tokio::task::spawn_blocking(move || {
        let mut probed = probe_machine(config.runtime, shards, config.memory_per_shard);
        refuse_failed(&probed)?;
        let is_known = config.data_dirs.iter().any(|root| matches!(store::identity(root), Ok(Some(_))));
        let may_go_without = is_known && config.data_dirs.len() > 1;
        let (mut locked, mut missing) = (Vec::new(), Vec::new());
        for root in &config.data_dirs {
            match lock(root, shards, may_go_without, &mut probed) {
                Ok(disk) => locked.push(disk),
                Err(Failed(error)) if may_go_without && !error.is_in_use => missing.push(give_up(root, &error)),
                Err(Failed(error)) => return Err(disk_error(error)),
            }
        }
        let found = Found { locked, missing, probed };
        found.refuse_mixed()?;
        Ok(found)
    });
    finding.await.map_err(|error| StartError::unavailable(format!("no look at the disks: {error}"), "try again"))?
}

fn give_up(root: &Path, error: &OpenError) -> Arc<Disk> {
    let OpenError { what, remedy, .. } = error;
    tracing::error!(root = %root.display(), cause = what, remedy, "disk is left out: its chunks are served by other servers");
    Disk::missing(root, what.clone())
}

fn lock(root: &Path, shards: u32, is_known: bool, probed: &mut Vec<Check>) -> Result<Locked, Failed> {
    if is_known && !root.exists() {
        let what = format!("{} is missing", root.display());
        let remedy = "mount the disk; or make the folder, to have a new disk begun in it";
        return Err(Failed(OpenError::new(what, remedy)));
    }
    let lock = DiskLock::acquire(root).map_err(Failed)?;
    let checks = probe_disk(root, shards);
    let failed = |part: fn(&Check) -> String| {
        let failed = checks.iter().filter(|check| check.verdict == Verdict::Failed).map(part);
        failed.collect::<Vec<_>>().join("; ")
    };
    let what = failed(|check| format!("{}: {}", check.name, check.found));
    log(&checks);
    if !what.is_empty() {
        return Err(Failed(OpenError::new(what, failed(|check| check.remedy.clone()))));
    }
    probed.extend(checks);
    let identity = store::identity(root).map_err(Failed)?;
    let device = std::fs::metadata(root).map_or(0, |folder| folder.dev());
    Ok(Locked { root: root.to_owned(), device, lock, identity })
}

fn log(checks: &[Check]) {
    for Check { name, verdict, found, remedy } in checks {
        match verdict {
            Verdict::Ok => tracing::info!(name, found, "probed"),
            Verdict::Warning => tracing::warn!(name, found, remedy, "probed"),
            Verdict::Failed => tracing::error!(name, found, remedy, "probed"),
        }
    }
}

/// Refuses a machine that cannot work, with every reason at once.
fn refuse_failed(checks: &[Check]) -> Result<(), StartError> {
    log(checks);
    let failed = || checks.iter().filter(|check| check.verdict == Verdict::Failed);
    if failed().next().is_none() {
        return Ok(());
    }
    let all = |part: fn(&Check) -> String| failed().map(part).collect::<Vec<_>>().join("; ");
    Err(StartError::config(all(|check| format!("{}: {}", check.name, check.found)), all(|check| check.remedy.clone())))
}

impl Found {
    /// Whose disks these are, and the folder that says so; `None` when all are fresh.
    pub(crate) fn owner(&self) -> Option<(&Path, Identity)> {
        self.locked.iter().find_map(|disk| Some((disk.root.as_path(), disk.identity?)))
    }

    fn refuse_mixed(&self) -> Result<(), StartError> {
        let mut owners: BTreeMap<(ServerId, ClusterId), Vec<String>> = BTreeMap::new();
        for disk in &self.locked {
            if let Some(Identity { server, cluster, .. }) = disk.identity {
                owners.entry((server, cluster)).or_default().push(disk.root.display().to_string());
            }
        }
        if owners.len() < 2 {
            return Ok(());
        }
        let of = |((server, cluster), roots): (&(ServerId, ClusterId), &Vec<String>)| {
            format!("{} of server {server} of cluster {cluster}", roots.join(", "))
        };
        let what =
            format!("disks of several servers are mixed: {}", owners.iter().map(of).collect::<Vec<_>>().join("; "));
        Err(StartError::config(what, "give each server its own disks"))
    }

    /// Recovers all disks, several at a time, and formats the fresh ones for this server. Those that fail
    /// are left out. Gives the recovered ones in the order of the configuration, and those left out.
    ///
    /// # Errors
    ///
    /// A disk fails, and no other can serve in its place.
    pub(crate) async fn recover<R: Spawn>(
        self,
        config: &Config,
        server: ServerId,
        cluster: ClusterId,
    ) -> Result<(Vec<Recovered>, Vec<Arc<Disk>>), StartError> {
        let is_known = self.owner().is_some();
        let may_go_without = is_known && config.data_dirs.len() > 1;
        let recoveries = self.locked.into_iter().map(|locked| {
            let disk = DiskConfig {
                root: locked.root.clone(),
                cluster,
                server,
                shards: config.shard_count(),
                ring_bytes: config.ring_bytes,
                unix_seconds: clock::unix_ms() / 1000,
            };
            async move { (locked.root.clone(), recover_one::<R>(disk, locked).await) }
        });
        let outcomes: Vec<_> = stream::iter(recoveries).buffered(RECOVERIES_MAX).collect().await;
        let (mut recovered, mut missing, mut last) = (Vec::new(), self.missing, None);
        for (root, outcome) in outcomes {
            match outcome {
                Ok(disk) => recovered.push(disk),
                Err(Broken::Disk(error)) if may_go_without => {
                    missing.push(give_up(&root, &error));
                    last = Some(error);
                }
                Err(Broken::Disk(error)) => return Err(disk_error(error)),
                Err(Broken::Start(error)) => return Err(error),
            }
        }
        match last {
            Some(error) if recovered.is_empty() => Err(disk_error(error)),
            _ if recovered.is_empty() => Err(StartError::config("no disk can be used", "look at the log")),
            _ => Ok((recovered, missing)),
        }
    }
}

/// What ended a recovery.
enum Broken {
    Disk(OpenError),
    Start(StartError),
}

/// Recovery runs on a shard thread of its own, before any shard serves.
async fn recover_one<R: Spawn>(config: DiskConfig, locked: Locked) -> Result<Recovered, Broken> {
    let Locked { root, device, lock, .. } = locked;
    let (done, outcome) = oneshot::channel();
    let memory = ShardConfig { index: 0, core: None, memory: RECOVERY_MEMORY };
    let thread = spawn::<R, _, _>(memory, move |rt: R| async move {
        // An error means that the start was given up.
        let _ = done.send(store::recover(&rt, &config).await);
    });
    let thread = thread.await.map_err(Broken::Start)?;
    let outcome = outcome.await;
    join(vec![thread]).await;
    let ended = |_| {
        Broken::Start(StartError::unavailable("recovery ended without a result", "look at the log before this line"))
    };
    let store::Recovered { seeds, summary, .. } = outcome.map_err(ended)?.map_err(Broken::Disk)?;
    tracing::info!(root = %root.display(), ?summary, "disk recovered");
    let owner = store::identity(&root).map_err(Broken::Disk)?;
    let owner =
        owner.ok_or_else(|| Broken::Disk(OpenError::new("the disk has lost its identity", "look at the disk")))?;
    Ok(Recovered { disk: Disk::opened(&root, device), summary, uuid: owner.disk_uuid, seeds, lock })
}

pub(crate) fn disk_error(error: OpenError) -> StartError {
    StartError::config(error.what, error.remedy)
}
