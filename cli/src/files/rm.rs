//! `hercules rm`: into the trash, from where `hercules undelete` brings it back for a while.

use clap::Args;
use wire::{Kind, NamePath};

use super::view::View;
use crate::cluster::{Cluster, parse_path};
use crate::exit::Failure;
use crate::output::Output;

/// Delete files; they can be undeleted for --trash-days of the master
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules rm /data.bin
  hercules rm -r /logs/2025
  hercules undelete /data.bin          brings it back")]
pub(crate) struct Rm {
    /// Paths in the cluster
    #[arg(required = true, value_name = "REMOTE", value_parser = parse_path)]
    remote: Vec<NamePath>,
    /// Directories with everything in them
    #[arg(short, long)]
    recursive: bool,
    /// A path that is not there is fine
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

impl Rm {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// The first path that fails ends it; those before it are deleted.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        for path in &self.remote {
            match client.delete(path, self.recursive).await {
                Ok(attr) => self.output.print(&View::new(path.as_str(), &attr), format!("{path}  deleted"))?,
                Err(error) if error.kind() == Kind::NotFound && self.force => {}
                Err(error) if error.kind() == Kind::Conflict && !self.recursive => {
                    return Err(Failure::from(error)
                        .context(format!("rm {path}"))
                        .remedy("give -r to delete a directory with everything in it"));
                }
                Err(error) => return Err(Failure::from(error).context(format!("rm {path}"))),
            }
        }
        Ok(())
    }
}
