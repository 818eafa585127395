//! The chunk store of Hercules and the runtimes it runs on.
//!
//! [`runtime`] is the seam: files, sockets, buffers, tasks and time come in through one trait, so
//! that the same code runs on glommio, on monoio, and in a simulation. Only backends of the seam may
//! contain `unsafe`.
#![deny(unsafe_code)]

pub mod probe;
pub mod runtime;
pub mod store;
