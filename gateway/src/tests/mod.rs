//! The gateway over loopback, in front of a cluster in memory.

mod api;
mod conditional;
mod fake;
mod files;
mod harness;
mod limits;
mod operations;
mod raw;
