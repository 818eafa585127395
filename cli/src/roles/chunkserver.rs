//! `hercules chunkserver`: the bytes.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args};
use engine::runtime::Backend;
use servers::chunkserver::{self, Config};

use super::{Lifecycle, Ready, admin};
use crate::address::Address;
use crate::cluster::parse_master;
use crate::exit::Failure;
use crate::key::KeyFile;
use crate::signals::Stop;
use crate::size;

/// Port of a chunkserver.
const PORT: u16 = 8081;

/// Run a chunkserver: one shard for each core, each with its own ring, journal and chunks
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules chunkserver --master master:9090 --data-dir /data/chunks
  SERVER_ADDRESS=chunkserver1:8081 MASTER_ADDR=master:9090 ROOT_DIR=/data/chunks hercules chunkserver
  hercules chunkserver --master master:9090 --data-dir /disk1/chunks --data-dir /disk2/chunks
  hercules doctor --data-dir /data/chunks      says whether this machine is fit for it")]
pub(crate) struct Chunkserver {
    /// Where to listen, host:port
    #[arg(long, env = "HERCULES_LISTEN", default_value = "0.0.0.0:8081", value_parser = parse_listen, value_name = "ADDRESS")]
    listen: Address,
    /// Address under which others reach it [default: --listen; when that is every address, the one on the way to the master]
    #[arg(long, env = "HERCULES_ADVERTISE", value_parser = parse_listen, value_name = "ADDRESS")]
    advertise: Option<Address>,
    /// Where /health and /metrics answer [default: the port 1000 above --listen]
    #[arg(long, env = "HERCULES_ADMIN", value_parser = parse_admin, value_name = "ADDRESS")]
    admin: Option<Address>,
    /// Folder of its chunks, on a file system with O_DIRECT; one for each disk, repeated or separated by commas
    #[arg(long, env = "HERCULES_DATA_DIR", default_value = "data/chunks", value_delimiter = ',', value_name = "DIR")]
    data_dir: Vec<PathBuf>,
    /// Masters, host:port; several are separated by commas
    #[arg(long, env = "HERCULES_MASTER", default_value = "127.0.0.1:9090", value_delimiter = ',', value_parser = parse_master, value_name = "ADDRESS")]
    master: Vec<Address>,
    /// What fails together with this server, such as a rack: replicas are spread over zones
    #[arg(long, env = "HERCULES_ZONE", default_value = "", hide_default_value = true, value_name = "NAME")]
    zone: String,
    /// Shards; 0 is one for each core
    #[arg(long, env = "HERCULES_SHARDS", default_value = "0", value_parser = clap::value_parser!(u32).range(0..=1024), value_name = "N")]
    shards: u32,
    /// How it talks to the kernel; monoio-epoll is for machines where io_uring is forbidden
    #[arg(long, env = "HERCULES_RUNTIME", default_value_t, value_parser = parse_runtime(), value_name = "NAME")]
    runtime: Backend,
    /// Memory for buffers of each shard
    #[arg(long, env = "HERCULES_MEMORY", default_value = "256M", value_parser = size::parse, value_name = "SIZE")]
    memory: u64,
    /// Blocks that each shard keeps in ordinary memory for readers; 0 keeps none
    #[arg(long, env = "HERCULES_READ_CACHE", default_value = "64M", value_parser = size::parse, value_name = "SIZE")]
    read_cache: u64,
    /// Most that is read ahead of a reader in order, up to 2M; eight times as much of --memory is set aside. 0 reads nothing ahead
    #[arg(long, env = "HERCULES_READ_AHEAD", default_value = "1M", value_parser = size::parse, value_name = "SIZE")]
    read_ahead: u64,
    /// Log area of each shard's journal, when the folder is new [default: 512M divided by the shards]
    #[arg(long, env = "HERCULES_JOURNAL", value_parser = size::parse, value_name = "SIZE")]
    journal: Option<u64>,
    /// Seconds without work after which a chunk is sealed: appends go on in a new one, writes re-open it
    #[arg(long, env = "HERCULES_IDLE_SEAL", default_value = "60", value_parser = clap::value_parser!(u32).range(1..=3600), value_name = "SECONDS")]
    idle_seal: u32,
    /// Days in which everything on the disks is read and verified once; 0 is only when asked for
    #[arg(long, env = "HERCULES_SCRUB_DAYS", default_value = "14", value_parser = clap::value_parser!(u32).range(0..=3650), value_name = "DAYS")]
    scrub_days: u32,
    /// Give each shard a core of its own; false where several servers share a machine
    #[arg(long, env = "HERCULES_PIN", default_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    pin: bool,
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    pub(crate) lifecycle: Lifecycle,
}

/// A backend by its name; completion scripts know the names.
pub(crate) fn parse_runtime() -> impl TypedValueParser<Value = Backend> {
    let names = Backend::ALL.map(|backend| PossibleValue::new(backend.to_string()));
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Backend>())
}

fn parse_listen(text: &str) -> Result<Address, String> {
    Address::parse(text, "0.0.0.0", PORT)
}

fn parse_admin(text: &str) -> Result<Address, String> {
    Address::parse(text, "0.0.0.0", PORT + crate::address::ADMIN_OFFSET)
}

impl Chunkserver {
    /// Where its admin port listens.
    ///
    /// # Errors
    ///
    /// When the data port leaves no room for it.
    pub(crate) fn admin(&self) -> Result<Address, String> {
        admin(self.admin.as_ref(), &self.listen)
    }
}

impl Chunkserver {
    /// Runs it until it is told to stop.
    ///
    /// # Errors
    ///
    /// Why it did not start, or did not stop in time.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let usage = |text| Failure::new(crate::exit::Code::Usage, text);
        let admin = self.admin().map_err(usage)?;
        if self.lifecycle.printed(&[("admin", admin.to_string())])? {
            return Ok(());
        }
        match engine::probe::lock_memory() {
            Ok(true) => tracing::info!("memory is locked"),
            // The probe says what to raise.
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "memory could not be locked: it can be swapped out"),
        }
        let mut stop = Stop::listen(self.lifecycle.parent_pipe)?;
        let config = Config {
            listen: self.listen.to_string(),
            advertise: self.advertise.map(|address| address.to_string()),
            admin: Some(admin.to_string()),
            masters: self.master.iter().map(ToString::to_string).collect(),
            data_dirs: self.data_dir,
            zone: self.zone,
            shards: Some(self.shards).filter(|shards| *shards > 0),
            runtime: self.runtime,
            memory_per_shard: self.memory,
            read_cache_bytes: self.read_cache,
            read_ahead_max: self.read_ahead,
            pin: self.pin,
            ring_bytes: self.journal,
            idle_seal: Duration::from_secs(u64::from(self.idle_seal)),
            scrub_every: Duration::from_secs(u64::from(self.scrub_days) * 24 * 3600),
            cluster_key: self.key.read()?,
        };
        let Some(running) = self.lifecycle.start(&mut stop, chunkserver::start(config)).await? else { return Ok(()) };
        let admin = running.admin.map(|address| address.to_string()).unwrap_or_default();
        let ready = Ready::new("chunkserver", running.address, admin);
        self.lifecycle.serve(ready, stop, running.stop()).await
    }
}
