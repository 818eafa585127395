//! How a chunkserver is configured.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use engine::runtime::Backend;
use engine::store::{ReadConfig, STORE_MEMORY};
use wire::ClusterKey;

use super::budget::Budget;
use crate::start::StartError;

/// Everything a chunkserver needs to know to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Data port, `host:port`; port 0 lets the kernel choose.
    pub listen: String,
    /// Where clients and peers reach the data port: `host` or `host:port`. `None`: the address it
    /// listens on, or, when that is unspecified, the one this machine has towards the master.
    pub advertise: Option<String>,
    /// Admin port, `host:port`; `None`: no admin port.
    pub admin: Option<String>,
    /// Masters, `host:port`; at least one. Tried in turn, for ever.
    pub masters: Vec<String>,
    /// The disks: directories on ext4 or XFS, not shared with anything; at least one. Each its own file
    /// system: what is on one device fails with it.
    pub data_dirs: Vec<PathBuf>,
    /// Failure zone, free text; may be empty.
    pub zone: String,
    /// Shards; `None`: one per core this process may use.
    pub shards: Option<u32>,
    /// What the shards run on. It is used, or the start fails: there is no silent fallback.
    pub runtime: Backend,
    /// Buffers of one shard, bytes, at least [`Config::MEMORY_MIN`] and what read-ahead takes.
    pub memory_per_shard: u64,
    /// Verified blocks that each shard keeps in ordinary memory, beside `memory_per_shard`, bytes; 0: none.
    pub read_cache_bytes: u64,
    /// Most bytes that are read ahead of one reader, at most [`Config::READ_AHEAD_MAX`]; 0: nothing. Eight
    /// times as much of `memory_per_shard` is set aside for it.
    pub read_ahead_max: u64,
    /// Pin each shard to a core of its own, as far as there are cores.
    pub pin: bool,
    /// Log area of each journal made from now on, bytes; `None`: 512 MiB divided by the shards.
    pub ring_bytes: Option<u64>,
    /// Everything on the disks is read and verified once in this time; zero: only when asked for.
    pub scrub_every: Duration,
    /// A head without work for so long seals its chunk.
    pub idle_seal: Duration,
    /// What both sides of every connection must prove; `None`: connections are taken from anybody.
    pub cluster_key: Option<ClusterKey>,
}

impl Config {
    /// Least buffers of a shard with one disk and without read-ahead, bytes: a largest operation in each of
    /// four uses, and what the store needs. Each disk more needs [`STORE_MEMORY`] more.
    pub const MEMORY_MIN: u64 = Budget::BYTES_MIN + STORE_MEMORY as u64;

    /// Buffers of a shard unless said otherwise, bytes: two windows of 32 MiB in each use.
    pub const MEMORY_DEFAULT: u64 = 256 << 20;

    /// Time for one scrub of everything unless said otherwise: 8 TB are 6.6 MB/s.
    pub const SCRUB_EVERY: Duration = Duration::from_secs(14 * 24 * 3600);

    /// A head without work for so long seals its chunk, unless said otherwise.
    pub const IDLE_SEAL: Duration = Duration::from_secs(60);
    /// Most disks of one server.
    pub const DISKS_MAX: usize = 64;
    /// Blocks that a shard keeps in memory unless said otherwise, bytes.
    pub const READ_CACHE_DEFAULT: u64 = 64 << 20;

    /// Bytes that are read ahead of a reader unless said otherwise.
    pub const READ_AHEAD_DEFAULT: u64 = 1 << 20;

    /// Most that can be read ahead of one reader: one buffer.
    pub const READ_AHEAD_MAX: u64 = 2 << 20;

    /// Most shards of one server.
    pub const SHARDS_MAX: u32 = 256;

    /// A configuration with one master, everything else as it comes.
    #[must_use]
    pub fn new(data_dir: PathBuf, master: String) -> Self {
        Self {
            listen: "127.0.0.1:0".into(),
            advertise: None,
            admin: None,
            masters: vec![master],
            data_dirs: vec![data_dir],
            zone: String::new(),
            shards: None,
            runtime: Backend::default(),
            memory_per_shard: Self::MEMORY_DEFAULT,
            read_cache_bytes: Self::READ_CACHE_DEFAULT,
            read_ahead_max: Self::READ_AHEAD_DEFAULT,
            pin: false,
            ring_bytes: None,
            scrub_every: Self::SCRUB_EVERY,
            idle_seal: Self::IDLE_SEAL,
            cluster_key: None,
        }
    }

    /// How many shards it will be.
    pub(crate) fn shard_count(&self) -> u32 {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.shards.unwrap_or_else(|| u32::try_from(cores()).unwrap_or(Self::SHARDS_MAX).min(Self::SHARDS_MAX))
    }

    /// The memory for reads of each shard's store on each disk: they share what the shard has.
    pub(crate) fn reads(&self) -> ReadConfig {
        let disks = self.data_dirs.len().max(1);
        ReadConfig {
            cache_bytes: usize::try_from(self.read_cache_bytes).unwrap_or(usize::MAX) / disks,
            ahead_max: u32::try_from(self.read_ahead_max.min(Self::READ_AHEAD_MAX)).unwrap_or(0),
        }
    }

    /// Bytes of each shard's buffers that operations of clients and members may fill.
    pub(crate) fn budget(&self) -> u64 {
        let of_store = (STORE_MEMORY + self.reads().buffers()) as u64;
        self.memory_per_shard.saturating_sub(of_store * self.data_dirs.len() as u64)
    }

    /// Refuses what cannot work, before anything is touched.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        if self.masters.is_empty() {
            return Err(StartError::config("no master is configured", "name at least one, as host:port"));
        }
        if self.data_dirs.is_empty() || self.data_dirs.len() > Self::DISKS_MAX {
            let what = format!("{} data directories are not possible", self.data_dirs.len());
            return Err(StartError::config(what, format!("give 1 to {}", Self::DISKS_MAX)));
        }
        let mut known = BTreeSet::new();
        for root in &self.data_dirs {
            let real = std::fs::canonicalize(root).unwrap_or_else(|_| root.clone());
            if !known.insert(real) {
                let what = format!("{} is given twice", root.display());
                return Err(StartError::config(what, "name each disk once"));
            }
        }
        let shards = self.shard_count();
        if shards == 0 || shards > Self::SHARDS_MAX {
            let remedy = format!("choose 1 to {}, or leave it out: one per core", Self::SHARDS_MAX);
            return Err(StartError::config(format!("{shards} shards are not possible"), remedy));
        }
        if self.read_ahead_max > Self::READ_AHEAD_MAX {
            let what = format!("{} bytes cannot be read ahead of a reader", self.read_ahead_max);
            return Err(StartError::config(what, format!("choose at most {} bytes, or 0", Self::READ_AHEAD_MAX)));
        }
        if self.budget() < Budget::BYTES_MIN {
            let of_store = (STORE_MEMORY + self.reads().buffers()) as u64;
            let least = Budget::BYTES_MIN + of_store * self.data_dirs.len() as u64;
            let what = format!("{} bytes of memory per shard are too few", self.memory_per_shard);
            return Err(StartError::config(
                what,
                format!("give each shard at least {least} bytes, or read less ahead"),
            ));
        }
        let all = self.memory_per_shard.checked_add(self.read_cache_bytes);
        if all.is_none_or(|all| usize::try_from(all).is_err()) {
            return Err(StartError::config("more memory per shard than can be addressed", "give each shard less"));
        }
        Ok(())
    }
}
