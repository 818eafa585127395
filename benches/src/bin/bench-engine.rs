//! `make bench-engine`: the chunk store against fio and a bare io_uring loop. Needs no cluster.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ::engine::runtime::Backend;
use benches::engine::{self, Options, plot};
use clap::{Parser, ValueEnum};

/// Measures the chunk store beside fio and a bare io_uring loop, in interleaved rounds.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder on the file system to measure; a scratch folder is made in it and removed.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Chunks of 64 MiB of sequential cases.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    chunks: u32,
    /// Seconds of each case that is measured by time.
    #[arg(long, default_value_t = 0.7)]
    seconds: f64,
    /// Journal whose recovery is measured, MiB.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(8..=4096))]
    journal: u64,
    /// Backends, the first one for what is measured on one only.
    #[arg(long, value_delimiter = ',', default_value = "glommio,monoio,monoio-epoll")]
    runtimes: Vec<Backend>,
    /// Only cases whose name contains this; recovery, idle, memory and counts are names too.
    #[arg(long)]
    only: Option<String>,
    /// Leave fio and the bare loop out: for profiling.
    #[arg(long)]
    lonely: bool,
    /// Let the bare loop submit only when it has nothing else to do, as runtimes do.
    #[arg(long)]
    batched: bool,
    /// Two rounds of little, to see that it runs. The figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Folder for engine.json and engine.svg.
    #[arg(long)]
    out: Option<PathBuf>,
    /// One figure of a process that does nothing else.
    #[arg(long, hide = true)]
    alone: Option<Alone>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Alone {
    Idle,
    Memory,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-engine: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let seconds = Duration::try_from_secs_f64(arguments.seconds).map_err(io::Error::other)?;
    if let Some(alone) = arguments.alone {
        let backend = arguments.runtimes.first().copied().unwrap_or_default();
        let figure = match alone {
            Alone::Idle => engine::idle(backend, &arguments.dir, seconds)?,
            Alone::Memory => engine::memory(backend, &arguments.dir, seconds)?,
        };
        println!("{figure}");
        return Ok(());
    }
    let full = Options {
        dir: arguments.dir.clone(),
        rounds: arguments.rounds,
        chunks: arguments.chunks,
        budget: seconds,
        journal: arguments.journal << 20,
        backends: arguments.runtimes.clone(),
        only: arguments.only.clone(),
        lonely: arguments.lonely,
        batched: arguments.batched,
    };
    let options = if arguments.quick {
        Options { rounds: 2, chunks: 1, budget: Duration::from_millis(100), journal: 16 << 20, ..full }
    } else {
        full
    };
    let report = engine::run(&options, &mut |what| eprintln!("{what} ..."))?;
    println!("{report}");
    if let Some(out) = &arguments.out {
        fs::create_dir_all(out)?;
        let json = serde_json::to_vec_pretty(&report).map_err(io::Error::other)?;
        fs::write(out.join("engine.json"), json)?;
        fs::write(out.join("engine.svg"), plot::svg(&report))?;
        println!("written: {0}/engine.json, {0}/engine.svg", out.display());
    }
    Ok(())
}
