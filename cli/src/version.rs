//! `hercules version`: what runs here, and what it speaks and writes.

use clap::Args;
use serde_json::json;

use crate::exit::Failure;
use crate::output::Output;

/// Version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit it was built from, when the build was told by `HERCULES_COMMIT`.
const COMMIT: Option<&str> = option_env!("HERCULES_COMMIT");

/// Show the version, the protocol and the formats
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules version
  hercules version --json | jq .protocol")]
pub(crate) struct Version {
    #[command(flatten)]
    output: Output,
}

impl Version {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// When standard output cannot be written.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let protocol = wire::frame::PROTOCOL;
        let commit = COMMIT.filter(|commit| !commit.is_empty());
        let value = json!({ "version": VERSION, "commit": commit, "protocol": protocol });
        let text = format!("hercules {VERSION}\ncommit    {}\nprotocol  {protocol}", commit.unwrap_or("unknown"));
        self.output.print(&value, text)
    }
}
