//! Master and chunkserver of Hercules.
#![forbid(unsafe_code)]

pub mod admin;
pub mod chunkserver;
pub mod clock;
mod door;
pub mod master;
pub mod start;

pub use start::StartError;
