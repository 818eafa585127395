//! `hercules scrub`: has chunkservers read and verify everything they hold, now.

use std::time::Duration;

use benches::admin;
use clap::Args;
use serde_json::json;
use wire::heartbeat::Liveness;

use crate::cluster::Cluster;
use crate::exit::{Code, Failure};
use crate::output::Output;

/// A server that does not answer for so long is not there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Have chunkservers read and verify everything they hold now; bad blocks are repaired from other replicas
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules scrub                              all chunkservers that are alive
  hercules scrub --server 127.0.0.1:9081      this one, by its admin address
  curl -s 127.0.0.1:9081/metrics | grep hercules_scrub      how far it is

It runs beside the work for clients, at most 64 MiB/s from each disk, and ends by itself.")]
pub(crate) struct Scrub {
    /// Admin address of one chunkserver [default: all that the master calls alive]
    #[arg(long, value_name = "ADDRESS")]
    server: Vec<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

impl Scrub {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// [`Code::Unavailable`] when a server does not answer, [`Code::Failed`] when it is no chunkserver or none
    /// is alive; the others have begun all the same.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let servers = if self.server.is_empty() { self.alive().await? } else { self.server.clone() };
        if servers.is_empty() {
            return Err(Failure::new(Code::Failed, "no chunkserver is alive").remedy("hercules status says more"));
        }
        let mut failed = None;
        for address in servers {
            let outcome = match admin::post(&address, "/scrub", ANSWER_TIMEOUT).await {
                Ok(answer) if answer.status == 202 => Ok(()),
                Ok(answer) => {
                    let text = format!("{address} does not scrub: status {}", answer.status);
                    Err(Failure::new(Code::Failed, text).remedy("give the admin address of a chunkserver"))
                }
                Err(error) => Err(Failure::new(Code::Unavailable, error.to_string())
                    .remedy("is the server running? hercules status says where")),
            };
            match outcome {
                Ok(()) => {
                    self.output.print(&json!({ "server": address, "scrub": "begun" }), format!("{address}  begun"))?
                }
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Admin addresses of the chunkservers that are alive.
    async fn alive(&self) -> Result<Vec<String>, Failure> {
        let cluster = self.cluster.connect().await?.cluster().await?;
        let alive = cluster.servers.into_iter().filter(|server| server.liveness == Liveness::Alive);
        Ok(alive.map(|server| server.admin).filter(|admin| !admin.is_empty()).collect())
    }
}
