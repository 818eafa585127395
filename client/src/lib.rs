//! The file API of Hercules: locate, read, write, append, list.
//!
//! A [`Client`] speaks to the master for names and places and to chunkservers for bytes, over plain
//! connections that its clones share. What it promises is written down in `docs/consistency.md`:
//! what is acknowledged is durable on every replica, appends happen exactly once however often they
//! are repeated inside, and reads are verified block by block and never end short.
//!
//! Decisions are pure and apart from the sockets: `retry` what follows from a fault, `stream` what
//! an append stream sends when, `plan` which pieces a read consists of, `locations` where chunks
//! are. `conn`, `pool` and `appender` act on them.
#![forbid(unsafe_code)]

mod append;
mod appender;
mod bounded;
mod client;
mod clock;
mod config;
mod conn;
mod error;
mod locations;
mod master;
mod namespace;
mod operate;
mod overwrite;
mod plan;
mod pool;
mod read;
mod retry;
#[cfg(feature = "simulation")]
pub mod simulation;
mod stat;
mod stats;
mod stream;
#[cfg(test)]
mod stream_model;
mod upload;
mod watchdog;
mod write;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use append::Appended;
pub use client::Client;
pub use config::Config;
pub use error::Error;
pub use read::ReadStream;
pub use stats::Stats;
pub use upload::{Upload, UploadOptions};

/// Locks. A panic while one is held ends the process, so the contents are always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
