//! `hercules undelete`: out of the trash, under the name it had.

use clap::Args;
use wire::NamePath;

use super::view::View;
use crate::cluster::{Cluster, parse_path};
use crate::exit::Failure;
use crate::output::Output;

/// Bring the newest deleted version of a path back
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules ls --trash
  hercules undelete /data.bin")]
pub(crate) struct Undelete {
    /// The path it was deleted from
    #[arg(value_name = "REMOTE", value_parser = parse_path)]
    remote: NamePath,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

impl Undelete {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the cluster says; nothing has changed then.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let attr = client.undelete(&self.remote).await?;
        self.output.print(&View::new(self.remote.as_str(), &attr), format!("{}  is back", self.remote))
    }
}
