//! `hercules drain`: empties a chunkserver, so that it can be switched off.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use wire::ServerId;
use wire::repairs::DrainStatus;

use crate::chunkservers::{drain_json, progress as words};
use crate::cluster::Cluster;
use crate::exit::{Code, Failure};
use crate::output::Output;
use crate::progress;

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Empty a chunkserver: no new chunks, what it holds is copied elsewhere
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules drain 3              server 3 of `hercules servers`; returns at once
  hercules drain 3 --wait       returns when it may be switched off
  hercules drain 3 --cancel     it takes chunks again

It holds over restarts of the master until it is cancelled. Reads go on; what was copied stays on the server's
disk until its quarantine is over.")]
pub(crate) struct Drain {
    /// Its id, as `hercules servers` shows it
    #[arg(value_name = "SERVER")]
    server: u32,
    /// Wait until nothing counts on it any more
    #[arg(long, conflicts_with = "cancel")]
    wait: bool,
    /// Take it back: the server takes chunks again
    #[arg(long)]
    cancel: bool,
    /// Also when fewer servers than replicas are left: chunks live with fewer replicas then
    #[arg(long, conflicts_with = "cancel")]
    force: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

impl Drain {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// When no master answers, the server is not known, or too few others are alive.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let server = ServerId(self.server);
        client.drain(server, !self.cancel, self.force).await?;
        if self.cancel {
            let value = json!({ "server": self.server, "drain": null });
            return self.output.print(&value, format!("server {server} takes chunks again"));
        }
        if !self.wait {
            let text = format!("server {server} is drained: `hercules servers` shows how far it is");
            return self.output.print(&json!({ "server": self.server, "drain": "begun" }), text);
        }
        let mut bar = None;
        let drain = loop {
            let repairs = client.repairs(0).await?;
            let found = repairs.draining.iter().find(|drain| drain.server == server);
            let drain = *found.ok_or_else(|| Failure::new(Code::Failed, "the drain was cancelled meanwhile"))?;
            if drain.is_counted && drain.left == 0 {
                break drain;
            }
            if drain.is_counted {
                let bar = bar.get_or_insert_with(|| progress::bytes(Some(drain.left_bytes), "draining"));
                let total = bar.length().unwrap_or(0).max(drain.left_bytes);
                bar.set_length(total);
                bar.set_position(total - drain.left_bytes);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        self.output.print(&drain_json(&drain), done(&drain))
    }
}

fn done(drain: &DrainStatus) -> String {
    format!("server {}  {}", drain.server, words(drain))
}
