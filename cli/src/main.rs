//! `hercules`: every server and every tool of the system in one binary.
//!
//! [`args`] is the command line; each command has a file of its own. What [`exit`] documents is
//! what scripts may rely on.
#![forbid(unsafe_code)]

mod address;
mod args;
mod bench;
mod chunkservers;
mod cluster;
mod compat;
mod completions;
mod dev;
mod disk;
mod doctor;
mod drain;
mod exit;
mod files;
mod health;
mod key;
mod logging;
mod output;
mod progress;
mod repairs;
mod roles;
mod scrub;
mod settings;
mod signals;
mod size;
mod status;
mod version;

use std::process::ExitCode;

use args::Command;
use exit::Failure;

fn main() -> ExitCode {
    let (cli, notes) = match args::from_environment() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    cli.logging.install(cli.command.default_level());
    for note in notes {
        tracing::info!("{note}");
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime = command.runtime().enable_all().build()?;
    let done = runtime.block_on(async {
        match command {
            Command::Master(command) => command.run().await,
            Command::Chunkserver(command) => command.run().await,
            Command::Gateway(command) => command.run().await,
            Command::Dev(command) => command.run().await,
            Command::Doctor(command) => command.run().await,
            Command::Health(command) => command.run().await,
            Command::Status(command) => command.run().await,
            Command::Scrub(command) => command.run().await,
            Command::Servers(command) => command.run().await,
            Command::Repairs(command) => command.run().await,
            Command::Drain(command) => command.run().await,
            Command::Put(command) => command.run().await,
            Command::Get(command) => command.run().await,
            Command::Cat(command) => command.run().await,
            Command::Append(command) => command.run().await,
            Command::Write(command) => command.run().await,
            Command::Ls(command) => command.run().await,
            Command::Stat(command) => command.run().await,
            Command::Rm(command) => command.run().await,
            Command::Mkdir(command) => command.run().await,
            Command::Mv(command) => command.run().await,
            Command::Undelete(command) => command.run().await,
            Command::Fsck(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Disk(command) => command.run(),
            Command::Key(command) => command.run(),
            Command::Bench(command) => command.run().await,
            Command::Completions(command) => command.run(),
            Command::Version(command) => command.run(),
        }
    });
    // Servers have been stopped above; a thread that still waits for standard input would hold this up.
    runtime.shutdown_background();
    done
}
