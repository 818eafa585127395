//! The cluster as its users meet it: real processes, real files, real kills.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "helpers of tests are tests"
)]

mod copies;
mod direct;
mod failures;
mod files;
mod http;
mod records;
mod regressions;
mod repair;
mod rig;
mod rot;
mod writes;
