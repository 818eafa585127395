//! What the threads of one chunkserver know about each other: who it is, where its shards' mailboxes
//! are, which disks it has. Read by the control thread's tasks and, through `status`, by the admin port.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use engine::probe::Check;
use engine::runtime::Backend;
use engine::store::RecoverySummary;
use tokio::sync::{mpsc, oneshot};
use wire::heartbeat::ChunkReport;
use wire::{ClusterId, ServerId};

use super::disks::Disk;
use super::mailbox::{ShardStatus, ToShard};
use crate::door::Door;

/// A shard that does not say how it is for so long is stuck.
const SHARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Shared by the threads of one chunkserver.
#[derive(Debug)]
pub(crate) struct Board {
    /// This start.
    pub(crate) boot: u64,
    identity: OnceLock<(ServerId, ClusterId)>,
    shards: OnceLock<Vec<mpsc::Sender<ToShard>>>,
    pub(super) found: OnceLock<Found>,
    disks: OnceLock<Vec<Arc<Disk>>>,
    pub(super) is_registered: AtomicBool,
    /// The door of the data port.
    pub(crate) door: Door,
    address: Mutex<String>,
    pub(super) reconnect_count: AtomicU64,
}

/// What was found at the start.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) backend: Backend,
    pub(crate) probed: Vec<Check>,
    /// One per disk.
    pub(crate) recovery: Vec<RecoverySummary>,
}

impl Board {
    pub(crate) fn new(boot: u64, door: Door) -> Arc<Self> {
        Arc::new(Self {
            boot,
            door,
            address: Mutex::default(),
            identity: OnceLock::new(),
            shards: OnceLock::new(),
            found: OnceLock::new(),
            disks: OnceLock::new(),
            is_registered: AtomicBool::default(),
            reconnect_count: AtomicU64::default(),
        })
    }

    /// Where others reach this server, as the master was told.
    pub(crate) fn set_address(&self, address: String) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    /// As [`Board::set_address`]; empty before.
    pub(crate) fn address(&self) -> String {
        self.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who this server is. Once.
    pub(crate) fn set_identity(&self, server: ServerId, cluster: ClusterId) {
        let first = self.identity.set((server, cluster)).is_ok();
        assert!(first, "a server gets its identity once");
    }

    /// What runs the shards, what the machine is worth, and what recovery found. Once.
    pub(crate) fn set_found(&self, found: Found) {
        let first = self.found.set(found).is_ok();
        assert!(first, "disks are recovered once");
    }

    /// All disks that were configured, those that were opened first. Once.
    pub(crate) fn set_disks(&self, disks: Vec<Arc<Disk>>) {
        let first = self.disks.set(disks).is_ok();
        assert!(first, "disks are opened once");
    }

    /// As [`Board::set_disks`]; empty before.
    pub(crate) fn disks(&self) -> &[Arc<Disk>] {
        self.disks.get().map_or(&[], Vec::as_slice)
    }

    /// The shards serve from now on. Once.
    pub(crate) fn set_shards(&self, shards: Vec<mpsc::Sender<ToShard>>) {
        let first = self.shards.set(shards).is_ok();
        assert!(first, "shards start once");
    }

    pub(crate) fn server(&self) -> ServerId {
        self.identity.get().map(|(server, _)| *server).unwrap_or_default()
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.identity.get().map(|(_, cluster)| *cluster).unwrap_or_default()
    }

    fn mailboxes(&self) -> &[mpsc::Sender<ToShard>] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    /// How many shards serve; zero until they do.
    pub(crate) fn shards(&self) -> u32 {
        u32::try_from(self.mailboxes().len()).unwrap_or(u32::MAX)
    }

    /// The master knows this server, or no longer hears it.
    pub(crate) fn set_registered(&self, is_registered: bool) {
        if self.is_registered.swap(is_registered, Ordering::Relaxed) != is_registered && is_registered {
            self.reconnect_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends to one shard; `false` when it has ended.
    pub(crate) async fn tell(&self, shard: u32, message: ToShard) -> bool {
        match self.mailboxes().get(shard as usize) {
            Some(mailbox) => mailbox.send(message).await.is_ok(),
            None => false,
        }
    }

    /// Numbers of all shards, in order; `None` for one that does not answer.
    pub(crate) async fn statuses(&self) -> Vec<Option<ShardStatus>> {
        self.ask_all(|reply| ToShard::Status { reply }).await
    }

    /// Reports of all shards, in order: what changed, or at most `limit` of each after a handle.
    /// `None` for a shard that does not answer.
    pub(crate) async fn reports(&self, after: Option<u64>, limit: usize) -> Vec<Option<Vec<ChunkReport>>> {
        self.ask_all(|reply| ToShard::Report { after, limit, reply }).await
    }

    async fn ask_all<T>(&self, message: impl Fn(oneshot::Sender<T>) -> ToShard) -> Vec<Option<T>> {
        let mut asked = Vec::new();
        for mailbox in self.mailboxes() {
            let (reply, answer) = oneshot::channel();
            let sent = mailbox.try_send(message(reply)).is_ok();
            asked.push(sent.then_some(answer));
        }
        let mut out = Vec::with_capacity(asked.len());
        for answer in asked {
            out.push(match answer {
                Some(answer) => tokio::time::timeout(SHARD_TIMEOUT, answer).await.ok().and_then(Result::ok),
                None => None,
            });
        }
        out
    }

    /// Has all shards scrub now.
    pub(crate) async fn scrub(&self) {
        for mailbox in self.mailboxes() {
            // An error means that it has ended.
            let _ = mailbox.send(ToShard::Scrub).await;
        }
    }

    /// Asks all shards to end.
    pub(crate) async fn stop_shards(&self) {
        for mailbox in self.mailboxes() {
            // An error means that it has ended already.
            let _ = mailbox.send(ToShard::Stop).await;
        }
    }
}
