//! The servers, as commands: what they share from their first line to their last.

pub(crate) mod chunkserver;
pub(crate) mod gateway;
pub(crate) mod master;

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::address::Address;
use crate::exit::{Code, Failure};
use crate::output;
use crate::settings::{self, Setting};
use crate::signals::Stop;

/// How a server starts and ends.
#[derive(Args, Clone, Debug)]
pub(crate) struct Lifecycle {
    /// Longest time that stopping may take, after SIGTERM or SIGINT; a second signal exits at once
    #[arg(long, env = "HERCULES_GRACE", default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) grace: Duration,
    /// Print every setting with its value and where that came from, and exit
    #[arg(long)]
    pub(crate) print_config: bool,
    /// With --print-config: as JSON
    #[arg(long, requires = "print_config")]
    pub(crate) json: bool,
    /// Print one line of JSON with the addresses when ready
    #[arg(long, hide = true)]
    pub(crate) announce: bool,
    /// Stop when standard input ends: a parent holds it open as long as it lives
    #[arg(long, hide = true)]
    pub(crate) parent_pipe: bool,
    /// What the command line, the environment and the defaults say; filled in after parsing.
    #[arg(skip)]
    pub(crate) settings: Vec<Setting>,
}

/// A server that is ready, as announced to its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Its subcommand.
    pub(crate) role: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Where it serves, `host:port`.
    pub(crate) address: String,
    /// Where it answers `/health` and `/metrics`.
    pub(crate) admin: String,
}

impl Ready {
    fn new(role: &str, address: impl ToString, admin: impl ToString) -> Self {
        Self { role: role.into(), pid: std::process::id(), address: address.to_string(), admin: admin.to_string() }
    }
}

impl Lifecycle {
    /// Answers `--print-config`; true when that was asked and the command is done. `derived` are
    /// settings that follow from others when they are not given.
    fn printed(&self, derived: &[(&str, String)]) -> Result<bool, Failure> {
        if self.print_config {
            let mut settings = self.settings.clone();
            settings::derive(&mut settings, derived);
            settings::derive(&mut settings, &[("log-level", "info".into())]);
            let text = settings::text(&settings);
            output::Output { json: self.json }.print(&settings, text)?;
        }
        Ok(self.print_config)
    }

    /// Starts a server unless it is told to stop meanwhile; nothing acknowledged can be lost by that.
    async fn start<T, E: Into<Failure>>(
        &self,
        stop: &mut Stop,
        start: impl Future<Output = Result<T, E>>,
    ) -> Result<Option<T>, Failure> {
        tokio::select! {
            running = start => running.map(Some).map_err(Into::into),
            reason = stop.asked() => {
                info!(reason, "stopped while starting");
                Ok(None)
            }
        }
    }

    /// Serves until told to stop, then drains.
    async fn serve(&self, ready: Ready, mut stop: Stop, drain: impl Future<Output = ()>) -> Result<(), Failure> {
        info!(role = ready.role, address = ready.address, admin = ready.admin, "ready");
        if self.announce {
            output::line(serde_json::to_string(&ready).map_err(std::io::Error::other)?)?;
        }
        let reason = stop.asked().await;
        stop.drain(reason, self.grace, drain).await
    }
}

/// Looks a host up: the system call wants numbers.
fn resolve(address: &Address) -> Result<SocketAddr, Failure> {
    let unknown = |cause: String| {
        Failure::new(Code::Config, format!("cannot resolve {address}: {cause}"))
            .remedy("give an address of this machine, such as 0.0.0.0, or fix the name")
    };
    let mut found =
        (address.host.as_str(), address.port).to_socket_addrs().map_err(|error| unknown(error.to_string()))?;
    found.next().ok_or_else(|| unknown("no such host".into()))
}

/// `--admin`, or the port above the data port.
fn admin(given: Option<&Address>, listen: &Address) -> Result<Address, String> {
    given.map_or_else(|| listen.admin(), |given| Ok(given.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text, "0.0.0.0", 1).unwrap()
    }

    #[test]
    fn a_name_that_is_none_is_a_configuration_error() {
        assert_eq!(resolve(&address("127.0.0.1:7")).unwrap().port(), 7);
        assert_eq!(resolve(&address("no-such-host.invalid:7")).unwrap_err().code, 78);
    }
}
