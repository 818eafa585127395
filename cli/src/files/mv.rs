//! `hercules mv`: another name for the same file, in one step.

use clap::Args;
use wire::{Kind, NamePath};

use super::view::View;
use super::{Target, join, parse_target};
use crate::cluster::{Cluster, parse_path};
use crate::exit::Failure;
use crate::output::Output;

/// Rename or move a file or directory, in one step
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules mv /a /b
  hercules mv /a /archive/             keeps the name
  hercules mv --replace /new /current  the old /current goes to the trash")]
pub(crate) struct Mv {
    /// Path in the cluster
    #[arg(value_name = "FROM", value_parser = parse_path)]
    from: NamePath,
    /// New path; a directory that is there, or a trailing slash, keeps the name
    #[arg(value_name = "TO", value_parser = parse_target)]
    to: Target,
    /// A file that is there goes to the trash
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

impl Mv {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the cluster says; nothing has moved then.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let into = self.to.is_directory(&client).await?;
        let to = if into { join(&self.to.path, self.from.name())? } else { self.to.path.clone() };
        let attr = client.rename(&self.from, &to, self.replace).await.map_err(|error| {
            let kind = error.kind();
            let failure = Failure::from(error).context(format!("mv {} {to}", self.from));
            if kind == Kind::Exists { failure.remedy("give --replace to put it into the trash") } else { failure }
        })?;
        self.output.print(&View::new(to.as_str(), &attr), format!("{} -> {to}", self.from))
    }
}
