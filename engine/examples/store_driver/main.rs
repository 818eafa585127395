//! Drives the chunk store in a real directory, for tests that cut the power or break the disk below it.
//!
//! ```text
//! store_driver run   --root DIR --log FILE ...   a seeded workload; every answer goes to the log
//! store_driver check --root DIR --log FILE ...   recovers, reads everything, compares with the log
//! store_driver full  --root DIR --ballast FILE   fills the disk, makes room, goes on
//! ```
//!
//! The log is the other half of the test: what was issued, what was acknowledged, in order, written
//! outside of the disk under test. The first line printed is the verdict.
//!
//! Exit status: 0 as promised, 1 a promise was broken, 2 wrong usage, 3 the store refused or failed
//! with an error and kept its promises.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a program of tests: what it does not expect ends it")]

mod check;
mod disk;
mod full;
mod history;
mod options;
mod run;
mod worker;

use std::process::ExitCode;

use engine::runtime::Backend;
use engine::runtime::glommio::GlommioRuntime;
use engine::runtime::monoio::{Epoll, MonoioRuntime, Uring};
use engine::runtime::shard::Spawn;
use options::{Mode, Options};

/// How it went, and the line that says so.
pub(crate) enum Verdict {
    Kept(String),
    Broken(String),
    Failed(String),
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("{wrong}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    let verdict = match options.backend {
        Backend::Glommio => drive::<GlommioRuntime>(options),
        Backend::Monoio => drive::<MonoioRuntime<Uring>>(options),
        Backend::MonoioEpoll => drive::<MonoioRuntime<Epoll>>(options),
    };
    let (line, code) = match verdict {
        Verdict::Kept(line) => (line, 0),
        Verdict::Broken(line) => (line, 1),
        Verdict::Failed(line) => (line, 3),
    };
    println!("{line}");
    ExitCode::from(code)
}

fn drive<R: Spawn>(options: Options) -> Verdict {
    match options.mode {
        Mode::Run => run::run::<R>(&options),
        Mode::Check => check::check::<R>(&options),
        Mode::Full => full::full::<R>(&options),
    }
}
