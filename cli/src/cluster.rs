//! How a command reaches the cluster.

use std::time::Duration;

use clap::Args;
use client::Client;
use futures_util::future::select_ok;
use tokio::net::TcpStream;
use wire::NamePath;

use crate::address::Address;
use crate::exit::{Code, Failure};
use crate::key::KeyFile;

/// Port of a master.
pub(crate) const MASTER_PORT: u16 = 9090;
/// Time for a first connection to any master. The client's own repeats come after that: they wait
/// for a master that restarts, this tells at once when there is none.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct Cluster {
    /// Masters, host:port; several are separated by commas
    #[arg(
        long,
        env = "HERCULES_MASTER",
        default_value = "127.0.0.1:9090",
        value_delimiter = ',',
        value_parser = parse_master,
        help_heading = "Cluster"
    )]
    pub(crate) master: Vec<Address>,
    /// How long one operation may take in all, repeats included
    #[arg(long, env = "HERCULES_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration, help_heading = "Cluster")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) key: KeyFile,
}

/// A master's address; what is missing is loopback and the usual port.
///
/// # Errors
///
/// A sentence for the user.
pub(crate) fn parse_master(text: &str) -> Result<Address, String> {
    Address::parse(text, "127.0.0.1", MASTER_PORT)
}

impl Cluster {
    /// A client, after one of the masters has accepted a connection.
    ///
    /// # Errors
    ///
    /// [`Code::Unavailable`] when none does, [`Code::Config`] when there is no key where one was named.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let key = self.key.read()?;
        let masters: Vec<String> = self.master.iter().map(ToString::to_string).collect();
        let dials = masters.iter().map(|master| Box::pin(TcpStream::connect(master.clone())));
        let limit = CONNECT_LIMIT.min(self.timeout);
        let cause = match tokio::time::timeout(limit, select_ok(dials)).await {
            Ok(Ok(_connection)) => {
                let mut config = client::Config::new(masters);
                config.deadline = self.timeout;
                config.cluster_key = key;
                return Ok(Client::new(config));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => format!("no answer within {limit:?}"),
        };
        Err(Failure::new(Code::Unavailable, format!("cannot reach a master at {}: {cause}", masters.join(", ")))
            .remedy(
                "start one (`hercules dev` runs a whole cluster here), or say where it is by --master or MASTER_ADDR",
            ))
    }
}

/// A path in the cluster, as an argument.
///
/// # Errors
///
/// A sentence for the user.
pub(crate) fn parse_path(text: &str) -> Result<NamePath, String> {
    NamePath::parse(text).map_err(|fault| fault.text)
}
