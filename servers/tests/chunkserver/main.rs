//! Chunkservers over real sockets and real disks, all in this process, with a scripted master.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on should fail loudly"
)]

mod append;
mod clone;
mod cluster;
mod disks;
mod hostile;
mod master;
mod peer;
mod read;
mod repair;
mod seal;
mod start;
