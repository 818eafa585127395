//! HTTP in front of the client: files as plain HTTP under `/fs`, the original's API under `/api/v1`,
//! and what operators need (`/health`, `/readyz`, `/metrics`).
//!
//! Stateless: any number of gateways may run. Bodies stream both ways in bounded windows; a write is
//! answered when it is durable on every replica; a read that fails midway breaks its connection and
//! never ends as a short success.
//!
//! [`start`] binds and returns; [`Running::stop`] drains. The routes are in `docs/http-api.md`.
#![forbid(unsafe_code)]

mod api;
mod app;
mod config;
mod conn;
mod edge;
mod fail;
mod files;
mod fs;
mod health;
mod http;
mod intake;
mod metrics;
mod server;
mod start;
#[cfg(test)]
mod tests;

pub use config::{Config, Limits};
pub use server::{Running, start};
pub use start::StartError;
