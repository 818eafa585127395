//! `hercules master`: names, placement and repair.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use servers::master::{self, Config};

use super::{Lifecycle, Ready, admin};
use crate::address::Address;
use crate::cluster::MASTER_PORT;
use crate::exit::Failure;
use crate::key::KeyFile;
use crate::signals::Stop;

/// Run a master
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules master --data-dir /data/master
  SERVER_ADDRESS=0.0.0.0:9090 ROOT_DIR=/data/master hercules master
  hercules master --print-config")]
pub(crate) struct Master {
    /// Where to listen, host:port
    #[arg(long, env = "HERCULES_LISTEN", default_value = "0.0.0.0:9090", value_parser = parse_listen, value_name = "ADDRESS")]
    listen: Address,
    /// Address under which others reach it, where that is not --listen
    #[arg(long, env = "HERCULES_ADVERTISE", value_parser = parse_listen, value_name = "ADDRESS")]
    advertise: Option<Address>,
    /// Where /health and /metrics answer [default: the port 1000 above --listen]
    #[arg(long, env = "HERCULES_ADMIN", value_parser = parse_admin, value_name = "ADDRESS")]
    admin: Option<Address>,
    /// Folder of its operation log and its state
    #[arg(long, env = "HERCULES_DATA_DIR", default_value = "data/master", value_name = "DIR")]
    data_dir: PathBuf,
    /// Replicas of each new chunk
    #[arg(long, env = "HERCULES_REPLICAS", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=8), value_name = "N")]
    replicas: u32,
    /// Fewest replicas with which a write is still acknowledged, while servers are missing [default: 2, or 1 of 1]
    #[arg(long, env = "HERCULES_MIN_ACK_REPLICAS", value_parser = clap::value_parser!(u32).range(1..=8), value_name = "N")]
    min_ack_replicas: Option<u32>,
    /// Silence after which a chunkserver counts as lost
    #[arg(long, env = "HERCULES_DEAD_AFTER", default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    dead_after: Duration,
    /// Days for which what was deleted can be brought back; 0.5 is twelve hours
    #[arg(long, env = "HERCULES_TRASH_DAYS", default_value = "3", value_parser = parse_days, value_name = "DAYS")]
    trash_days: Duration,
    /// How long the bytes of a replica that is no longer needed are kept
    #[arg(long, env = "HERCULES_CONDEMNED_KEEP", default_value = "24h", value_parser = humantime::parse_duration, value_name = "TIME")]
    condemned_keep: Duration,
    /// How long an upload that was never finished is kept
    #[arg(long, env = "HERCULES_UPLOAD_KEEP", default_value = "24h", value_parser = humantime::parse_duration, value_name = "TIME")]
    upload_keep: Duration,
    /// How often the trash is looked through
    #[arg(long, env = "HERCULES_GC_EVERY", default_value = "10s", value_parser = humantime::parse_duration, value_name = "TIME")]
    gc_every: Duration,
    /// How often the state is checkpointed, when it has changed
    #[arg(long, env = "HERCULES_CHECKPOINT_EVERY", default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    checkpoint_every: Duration,
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    pub(crate) lifecycle: Lifecycle,
}

fn parse_listen(text: &str) -> Result<Address, String> {
    Address::parse(text, "0.0.0.0", MASTER_PORT)
}

fn parse_admin(text: &str) -> Result<Address, String> {
    Address::parse(text, "0.0.0.0", MASTER_PORT + crate::address::ADMIN_OFFSET)
}

/// Days as a number, at most a thousand years.
fn parse_days(text: &str) -> Result<Duration, String> {
    let days: f64 = text.trim().parse().map_err(|_not_a_number| format!("`{text}` is not a number of days"))?;
    if (0.0..=365_000.0).contains(&days) {
        return Ok(Duration::from_secs_f64(days * 86_400.0));
    }
    Err(format!("{text} days are not possible"))
}

impl Master {
    /// Where its admin port listens.
    ///
    /// # Errors
    ///
    /// When the data port leaves no room for it.
    pub(crate) fn admin(&self) -> Result<Address, String> {
        admin(self.admin.as_ref(), &self.listen)
    }
}

impl Master {
    /// Runs it until it is told to stop.
    ///
    /// # Errors
    ///
    /// Why it did not start, or did not stop in time.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let usage = |text| Failure::new(crate::exit::Code::Usage, text);
        let admin = self.admin().map_err(usage)?;
        let min_ack_replicas = self.min_ack_replicas.unwrap_or(self.replicas.min(2));
        let derived = [("admin", admin.to_string()), ("min-ack-replicas", min_ack_replicas.to_string())];
        if self.lifecycle.printed(&derived)? {
            return Ok(());
        }
        let mut stop = Stop::listen(self.lifecycle.parent_pipe)?;
        let config = Config {
            advertise: self.advertise.map(|address| address.to_string()),
            admin: Some(admin.to_string()),
            replicas: self.replicas,
            min_ack_replicas,
            dead_after: self.dead_after,
            trash_keep: self.trash_days,
            condemned_keep: self.condemned_keep,
            upload_keep: self.upload_keep,
            gc_every: self.gc_every,
            checkpoint_every: self.checkpoint_every,
            cluster_key: self.key.read()?,
            ..Config::new(self.listen.to_string(), self.data_dir)
        };
        let Some(running) = self.lifecycle.start(&mut stop, master::start(config)).await? else { return Ok(()) };
        let admin = running.admin.map(|address| address.to_string()).unwrap_or_default();
        let ready = Ready::new("master", running.address, admin);
        self.lifecycle.serve(ready, stop, running.stop()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_may_be_parts_of_days_and_nothing_else() {
        assert_eq!(parse_days("3"), Ok(Duration::from_secs(3 * 86_400)));
        assert_eq!(parse_days("0.5"), Ok(Duration::from_secs(43_200)));
        assert_eq!(parse_days("0"), Ok(Duration::ZERO));
        for text in ["", "-1", "NaN", "inf", "1e9", "3d"] {
            assert!(parse_days(text).is_err(), "{text}");
        }
    }
}
