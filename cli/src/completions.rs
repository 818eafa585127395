//! `hercules completions`: scripts for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;

/// Print a completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules completions bash > /etc/bash_completion.d/hercules
  hercules completions zsh > ~/.zfunc/_hercules
  hercules completions fish > ~/.config/fish/completions/hercules.fish")]
pub(crate) struct Completions {
    shell: Shell,
}

impl Completions {
    /// Runs it.
    pub(crate) fn run(&self) -> Result<(), crate::exit::Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "hercules", &mut script);
        crate::output::line(String::from_utf8_lossy(&script).trim_end())
    }
}
