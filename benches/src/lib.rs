//! Workloads and what is measured around them: the numbers the README quotes.
//!
//! [`workload`] drives a cluster through the client, [`meter`] takes what every process and disk
//! spent meanwhile, [`report`] is the result in the units people compare. [`limits`] measures the
//! machine itself in the same run, because a throughput means something only beside what the disk
//! and the network could have done. [`admin`] asks a server's admin port. [`engine`] needs no cluster:
//! it measures the chunk store alone, beside fio and a bare io_uring loop.
#![forbid(unsafe_code)]

pub mod admin;
pub mod device;
pub mod engine;
pub mod limits;
pub mod meter;
pub mod metrics;
pub mod report;
pub mod workload;

pub use workload::Failure;

/// The clock of every measurement here.
#[allow(clippy::disallowed_methods, reason = "measuring time is what this crate is for")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}
