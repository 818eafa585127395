//! `hercules cat`: bytes to standard output.

use clap::Args;
use indicatif::ProgressBar;
use wire::NamePath;

use super::get::{Part, copy};
use crate::cluster::{Cluster, parse_path};
use crate::exit::{Code, Failure};

/// Print files to standard output
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules cat /logs/a
  hercules cat --offset 1M --length 4K /data.bin | xxd")]
pub(crate) struct Cat {
    /// Paths in the cluster
    #[arg(required = true, value_name = "REMOTE", value_parser = parse_path)]
    remote: Vec<NamePath>,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    cluster: Cluster,
}

impl Cat {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// The first file that fails ends it.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let mut out = tokio::io::stdout();
        for path in &self.remote {
            let named = |failure: Failure| failure.context(format!("cat {path}"));
            let attr = client.stat(path).await.map_err(|error| named(error.into()))?;
            if attr.is_dir {
                return Err(
                    Failure::new(Code::Usage, format!("{path} is a directory")).remedy("`hercules ls` lists it")
                );
            }
            let range = self.part.of(attr.len).map_err(named)?;
            copy(&client, &attr, range, &mut out, &ProgressBar::hidden(), None).await.map_err(named)?;
        }
        Ok(())
    }
}
