//! `hercules gateway`: HTTP in front of the cluster.

use std::time::Duration;

use clap::Args;
use gateway::Config;

use super::{Lifecycle, Ready, resolve};
use crate::address::Address;
use crate::cluster::parse_master;
use crate::exit::Failure;
use crate::key::KeyFile;
use crate::signals::Stop;
use crate::size;

/// Port of a gateway.
pub(crate) const PORT: u16 = 8089;

/// Run a gateway: files over HTTP; health and metrics answer on the same port
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules gateway --master master:9090
  GATEWAY_ADDR=8089 MASTER_ADDR=master:9090 hercules gateway
  curl -T file http://localhost:8089/fs/file")]
pub(crate) struct Gateway {
    /// Where to listen, host:port or a port alone
    #[arg(long, env = "HERCULES_LISTEN", default_value = "0.0.0.0:8089", value_parser = parse_listen, value_name = "ADDRESS")]
    listen: Address,
    /// Masters, host:port; several are separated by commas
    #[arg(long, env = "HERCULES_MASTER", default_value = "127.0.0.1:9090", value_delimiter = ',', value_parser = parse_master)]
    master: Vec<Address>,
    /// How long one call to the cluster may take in all, repeats included
    #[arg(long, env = "HERCULES_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    timeout: Duration,
    /// Bytes that one upload may have unacknowledged
    #[arg(long, env = "HERCULES_WINDOW", default_value = "4M", value_parser = size::parse, value_name = "SIZE")]
    window: u64,
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    pub(crate) lifecycle: Lifecycle,
}

fn parse_listen(text: &str) -> Result<Address, String> {
    Address::parse(text, "0.0.0.0", PORT)
}

impl Gateway {
    /// Where it listens.
    #[must_use]
    pub(crate) fn listen(&self) -> &Address {
        &self.listen
    }

    /// Runs it until it is told to stop.
    ///
    /// # Errors
    ///
    /// Why it did not start, or did not stop in time.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if self.lifecycle.printed(&[])? {
            return Ok(());
        }
        let mut stop = Stop::listen(self.lifecycle.parent_pipe)?;
        let mut config = Config::new(self.master.iter().map(ToString::to_string).collect());
        config.listen = resolve(&self.listen)?;
        config.deadline = self.timeout;
        config.cluster_key = self.key.read()?;
        config.window = usize::try_from(self.window).unwrap_or(usize::MAX);
        config.limits.drain = self.lifecycle.grace;
        let Some(running) = self.lifecycle.start(&mut stop, gateway::start(config)).await? else { return Ok(()) };
        let ready = Ready::new("gateway", running.address, running.address);
        self.lifecycle.serve(ready, stop, running.stop()).await
    }
}

impl From<gateway::StartError> for Failure {
    fn from(error: gateway::StartError) -> Self {
        Self { code: error.exit, what: error.what, remedy: error.remedy }
    }
}
