//! The command line: ours, and the original's.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::runtime;

use crate::exit::{self, Code};
use crate::logging::Logging;
use crate::roles::Lifecycle;
use crate::{
    bench, chunkservers, compat, completions, dev, disk, doctor, drain, files, health, key, repairs, roles, scrub,
    settings, status, version,
};

/// A distributed file system: acknowledged means durable on every replica.
#[derive(Debug, Parser)]
#[command(name = "hercules", version, after_help = exit::HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) logging: Logging,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, once")]
pub(crate) enum Command {
    Master(roles::master::Master),
    Chunkserver(roles::chunkserver::Chunkserver),
    Gateway(roles::gateway::Gateway),
    Dev(dev::Dev),
    Doctor(doctor::Doctor),
    Health(health::Health),
    Status(status::Status),
    Scrub(scrub::Scrub),
    Servers(chunkservers::Servers),
    Repairs(repairs::Repairs),
    Drain(drain::Drain),
    Put(files::put::Put),
    Get(files::get::Get),
    Cat(files::cat::Cat),
    Append(files::append::Append),
    Write(files::write::Write),
    Ls(files::ls::Ls),
    Stat(files::stat::Stat),
    Rm(files::rm::Rm),
    Mkdir(files::mkdir::Mkdir),
    Mv(files::mv::Mv),
    Undelete(files::undelete::Undelete),
    Fsck(disk::fsck::Fsck),
    Inspect(disk::inspect::Inspect),
    Disk(disk::manage::Disk),
    Key(key::Key),
    Bench(bench::Bench),
    Completions(completions::Completions),
    Version(version::Version),
}

impl Command {
    /// What is logged when nobody says: servers tell what they do, tools only what went wrong. Those
    /// that look at a disk print what they find: what the store logs of it meanwhile would say it twice.
    #[must_use]
    pub(crate) fn default_level(&self) -> &'static str {
        match self {
            Self::Master(_) | Self::Chunkserver(_) | Self::Gateway(_) => "info",
            Self::Fsck(_) | Self::Inspect(_) | Self::Disk(_) => "off",
            _ => "warn",
        }
    }

    /// How it starts and ends, when it is a server.
    fn lifecycle(&mut self) -> Option<&mut Lifecycle> {
        match self {
            Self::Master(command) => Some(&mut command.lifecycle),
            Self::Chunkserver(command) => Some(&mut command.lifecycle),
            Self::Gateway(command) => Some(&mut command.lifecycle),
            _ => None,
        }
    }

    /// The runtime it needs. A chunkserver's work is done by its shards, and `dev` and the small
    /// tools have next to none: one thread.
    #[must_use]
    pub(crate) fn runtime(&self) -> runtime::Builder {
        match self {
            Self::Chunkserver(_)
            | Self::Dev(_)
            | Self::Health(_)
            | Self::Fsck(_)
            | Self::Inspect(_)
            | Self::Disk(_)
            | Self::Key(_)
            | Self::Completions(_)
            | Self::Version(_) => runtime::Builder::new_current_thread(),
            _ => runtime::Builder::new_multi_thread(),
        }
    }
}

impl Cli {
    /// Parses a command line, the original's as well. Beside it come notes about what was ignored.
    ///
    /// # Errors
    ///
    /// What clap says, help and version included.
    pub(crate) fn parse(args: Vec<OsString>, server_type: &[OsString]) -> Result<(Self, Vec<String>), clap::Error> {
        let mut command = compat::alias_environment(Self::command(), &|name| env::var_os(name));
        let names: Vec<String> = command.get_subcommands().map(|known| known.get_name().to_owned()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let server_type = server_type.first().and_then(|value| value.to_str());
        let rewritten = compat::rewrite(args, server_type, &names)
            .map_err(|text| command.error(clap::error::ErrorKind::InvalidValue, text))?;
        command.build();
        let mut matches = command.clone().try_get_matches_from(rewritten.args)?;
        let told = matches.subcommand().and_then(|(name, given)| Some((command.find_subcommand(name)?, given)));
        let settings = told.map(|(subcommand, given)| settings::of(subcommand, given));
        let mut cli = Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
        if let Some(lifecycle) = cli.command.lifecycle() {
            lifecycle.settings = settings.unwrap_or_default();
        }
        Ok((cli, rewritten.notes))
    }
}

/// The command line of this process. On the way out it has told the user, and the exit code comes back.
///
/// # Errors
///
/// The exit code: zero after `--help` and `--version`, [`Code::Usage`] else.
pub(crate) fn from_environment() -> Result<(Cli, Vec<String>), ExitCode> {
    let server_type: Vec<OsString> = env::var_os("SERVER_TYPE").filter(|value| !value.is_empty()).into_iter().collect();
    let parsed = Cli::parse(env::args_os().collect(), &server_type);
    let (mut cli, mut notes) = parsed.map_err(|error| {
        // Nowhere to tell it if even standard error is gone.
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { Code::Usage as u8 } else { Code::Done as u8 })
    })?;
    if cli.command.lifecycle().is_some() && env::var_os("REDIS_ADDR").is_some_and(|value| !value.is_empty()) {
        notes.push("REDIS_ADDR is ignored: no Redis is needed".into());
    }
    Ok((cli, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands().filter(|command| command.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("hercules "), "{} has no examples", command.get_name());
        }
    }

    #[test]
    fn every_part_of_disk_has_examples() {
        let cli = Cli::command();
        let disk = cli.find_subcommand("disk").unwrap();
        for part in disk.get_subcommands().filter(|part| part.get_name() != "help") {
            let help = part.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("hercules disk"), "{} has no examples", part.get_name());
        }
    }

    #[test]
    fn every_flag_of_a_server_has_a_variable() {
        for role in ["master", "chunkserver", "gateway"] {
            let command = Cli::command();
            let role = command.find_subcommand(role).unwrap();
            for arg in role.get_arguments().filter(|arg| !settings::ACTIONS.contains(&arg.get_id().as_str())) {
                assert!(arg.get_env().is_some(), "{} {}", role.get_name(), arg.get_id());
            }
        }
    }
}
