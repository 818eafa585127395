//! `hercules health`: asks a server over HTTP whether it serves. The health check of the containers.

use std::ffi::OsStr;
use std::time::Duration;

use benches::admin;
use clap::Args;
use serde_json::{Value, json};

use crate::args::{Cli, Command};
use crate::compat;
use crate::exit::{Code, Failure};
use crate::output::Output;

/// Ask a server whether it serves; exit code 0 when it does, 1 when it says no, 69 when nobody answers
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules health 127.0.0.1:10090      asks this admin port (a gateway: its own port)
  hercules health --role chunkserver   asks the local one, where its environment says it listens
  SERVER_TYPE=master_server hercules health")]
pub(crate) struct Health {
    /// Admin port of a server, host:port [default: the local server of --role]
    #[arg(value_name = "ADDRESS")]
    address: Option<String>,
    /// Which local server: master, chunkserver or gateway
    #[arg(long, env = "SERVER_TYPE")]
    role: Option<String>,
    /// How long an answer may take
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
}

impl Health {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// [`Code::Unavailable`] when nobody answers, [`Code::Failed`] when the answer is no.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let address = match (&self.address, &self.role) {
            (Some(address), _) => address.clone(),
            (None, Some(role)) => local_address(role)?,
            (None, None) => {
                return Err(Failure::new(Code::Usage, "which server?")
                    .remedy("give its admin address, or --role master, chunkserver or gateway"));
            }
        };
        let answer = admin::get(&address, "/health", self.timeout).await.map_err(|error| {
            Failure::new(Code::Unavailable, error.to_string()).remedy("is the server running? its log says why not")
        })?;
        let serves = answer.status == 200;
        let details = serde_json::from_str(&answer.body).unwrap_or(Value::String(answer.body.clone()));
        let word =
            details.get("status").and_then(Value::as_str).unwrap_or(if serves { "healthy" } else { "unhealthy" });
        let text = format!("{address}  {word}");
        self.output.print(&json!({ "address": address, "serves": serves, "health": details }), text)?;
        if serves { Ok(()) } else { Err(Failure::silent(Code::Failed)) }
    }
}

/// Where the local server of this role answers, by the rules the server itself follows: its
/// environment, then its defaults.
fn local_address(role: &str) -> Result<String, Failure> {
    let usage = |text: String| Failure::new(Code::Usage, text);
    let role = compat::role(OsStr::new(role)).map_err(usage)?;
    let (cli, _) =
        Cli::parse(["hercules", role].map(Into::into).to_vec(), &[]).map_err(|error| usage(error.to_string()))?;
    let address = match cli.command {
        Command::Master(master) => master.admin(),
        Command::Chunkserver(chunkserver) => chunkserver.admin(),
        Command::Gateway(gateway) => Ok(gateway.listen().clone()),
        _ => Err("no such role".into()),
    };
    Ok(address.map_err(usage)?.seen_here().to_string())
}
