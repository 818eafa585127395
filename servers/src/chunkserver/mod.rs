//! The chunkserver: replicas of chunks on its disks, chains to other chunkservers, reads.
//!
//! One shard per core owns its ring, its buffers, the chunks whose handle hashes to it and the
//! connections that talk about them (`shard`). Nothing is shared but mailboxes. One control thread
//! accepts connections and hands them to the shard they name (`hello`), talks to the master
//! (`heartbeat`) and serves the admin port (`board`).
//!
//! Life of an append: `connection` receives it whole, `append` gives it its place at the head,
//! `forward` takes it at the other members, `link` carries it between them, `replica` and
//! `progress` know when it is durable everywhere; the decisions are in `admit`.

mod admit;
mod append;
mod board;
mod budget;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]
mod campaign;
mod chain;
mod clone;
mod config;
mod connection;
mod desk;
mod disks;
mod fault;
mod forward;
pub(crate) mod frames;
mod heartbeat;
mod hello;
mod launch;
mod link;
mod mailbox;
mod open;
mod outbox;
mod overwrite;
mod pace;
mod peer;
mod place;
mod progress;
mod read;
mod reopen;
mod repair;
mod replica;
mod scrub;
mod seal;
mod shard;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of a simulation are small")]
pub(crate) mod simulated;
mod status;
mod stores;
mod stores_clone;
mod throttle;

use std::net::SocketAddr;
use std::thread::JoinHandle;

use engine::runtime::Backend;
use engine::runtime::glommio::GlommioRuntime;
use engine::runtime::monoio::{Epoll, MonoioRuntime, Uring};
use tokio::sync::oneshot;
use wire::{ClusterId, ServerId};

pub use config::Config;
use launch::{Server, Started, launch};

use crate::start::StartError;

/// A chunkserver that serves. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Running {
    /// The data port.
    pub address: SocketAddr,
    /// The admin port, if it has one.
    pub admin: Option<SocketAddr>,
    /// Its id.
    pub server: ServerId,
    /// Its cluster.
    pub cluster: ClusterId,
    stop: oneshot::Sender<()>,
    control: JoinHandle<()>,
}

impl Running {
    /// Takes no more connections, finishes what is in flight (a few seconds at most), and makes
    /// everything durable. Returns when all threads have ended and the disk is free.
    pub async fn stop(self) {
        // An error means that the control thread has ended already.
        let _ = self.stop.send(());
        let control = self.control;
        if tokio::task::spawn_blocking(move || control.join()).await.is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

/// Starts a chunkserver. A fresh disk waits for a master to register it, for as long as that takes; a
/// known one serves what it holds whether a master is there or not. Returns when it serves. Dropping
/// the future gives the start up.
///
/// # Errors
///
/// [`StartError`] with the remedy; no disk was changed, except that a disk may have been recovered.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let (outcome, started) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let control = std::thread::Builder::new().name("control".into()).spawn(move || control(config, outcome, stopped));
    let control = control.map_err(|error| cannot_thread(&error))?;
    match started.await {
        Ok(outcome) => {
            let Started { address, admin, server, cluster } = outcome?;
            Ok(Running { address, admin, server, cluster, stop, control })
        }
        Err(_) => Err(StartError::unavailable("the control thread ended at its start", "look at the log")),
    }
}

fn cannot_thread(error: &std::io::Error) -> StartError {
    StartError::unavailable(format!("cannot start the control thread: {error}"), "raise the limit of processes")
}

/// The control thread.
fn control(config: Config, outcome: oneshot::Sender<Result<Started, StartError>>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(outcome.send(Err(cannot_thread(&error)))),
    };
    runtime.block_on(async move {
        let mut stopped = stopped;
        let launched = tokio::select! {
            launched = dispatch(config) => launched,
            // The caller has given the start up.
            _ = &mut stopped => return,
        };
        match launched {
            Ok(server) => {
                let is_wanted = outcome.send(Ok(server.started)).is_ok();
                if is_wanted {
                    // An error means that the handle was dropped: stop as well.
                    let _ = stopped.await;
                }
                server.stop().await;
            }
            Err(error) => drop(outcome.send(Err(error))),
        }
    });
}

/// Uses the backend that was asked for.
async fn dispatch(config: Config) -> Result<Server, StartError> {
    match config.runtime {
        Backend::Glommio => launch::<GlommioRuntime>(config).await,
        Backend::Monoio => launch::<MonoioRuntime<Uring>>(config).await,
        Backend::MonoioEpoll => launch::<MonoioRuntime<Epoll>>(config).await,
    }
}
