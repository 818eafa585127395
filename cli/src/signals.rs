//! When a server has to stop: SIGTERM and SIGINT drain, a second one exits at once.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::exit::{Code, Failure};

/// Exit code after a second signal: 128 and the number of SIGTERM, as shells have it.
const KILLED: i32 = 128 + 15;

/// The signals that ask for the end. Made before the server starts, so that none is missed.
#[derive(Debug)]
pub(crate) struct Stop {
    term: Signal,
    int: Signal,
    parent: bool,
}

impl Stop {
    /// Listens for signals from now on; with `parent` also for the end of standard input, which a
    /// parent holds open as long as it lives.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub(crate) fn listen(parent: bool) -> Result<Self, Failure> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())?, parent })
    }

    /// Returns when the process has been asked to stop, with the reason. Cancel-safe.
    pub(crate) async fn asked(&mut self) -> &'static str {
        if self.parent {
            tokio::select! {
                reason = Self::signalled(&mut self.term, &mut self.int) => reason,
                () = end_of_input() => {
                    self.parent = false;
                    "parent is gone"
                }
            }
        } else {
            Self::signalled(&mut self.term, &mut self.int).await
        }
    }

    /// Runs the drain: a second signal, or more time than `grace`, ends the process at once.
    ///
    /// # Errors
    ///
    /// When the grace period was not enough.
    pub(crate) async fn drain(
        mut self,
        reason: &str,
        grace: Duration,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        info!(reason, ?grace, "stopping: finishing what is in flight");
        self.parent = false;
        tokio::select! {
            () = stop => {
                info!("stopped");
                Ok(())
            }
            signal = self.asked() => {
                warn!(signal, "second signal: exiting at once");
                std::process::exit(KILLED);
            }
            () = tokio::time::sleep(grace) => {
                Err(Failure::new(Code::Failed, format!("not drained within {grace:?}"))
                    .remedy("nothing acknowledged is lost; a longer --grace lets it finish"))
            }
        }
    }

    async fn signalled(term: &mut Signal, int: &mut Signal) -> &'static str {
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        }
    }
}

/// Returns when standard input ends; what arrives before is thrown away.
async fn end_of_input() {
    let mut stdin = tokio::io::stdin();
    let mut buffer = [0; 256];
    while stdin.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
}
