//! `hercules mkdir`: a directory, and those above it.

use clap::Args;
use wire::NamePath;

use super::view::View;
use crate::cluster::{Cluster, parse_path};
use crate::exit::Failure;
use crate::output::Output;

/// Make directories, and those above them; one that is there is fine
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules mkdir /logs/2026/11")]
pub(crate) struct Mkdir {
    /// Paths in the cluster
    #[arg(required = true, value_name = "REMOTE", value_parser = parse_path)]
    remote: Vec<NamePath>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

impl Mkdir {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// The first path that fails ends it; those before it are there.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        for path in &self.remote {
            let attr =
                client.mkdir(path).await.map_err(|error| Failure::from(error).context(format!("mkdir {path}")))?;
            self.output.print(&View::new(path.as_str(), &attr), format!("{path}/"))?;
        }
        Ok(())
    }
}
