//! Master and chunkserver of Hercules.
#![forbid(unsafe_code)]

pub mod admin;
mod canary;
pub mod chunkserver;
pub mod clock;
mod door;
pub mod master;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of a simulation are small")]
mod simulation;
pub mod start;

pub use start::StartError;
