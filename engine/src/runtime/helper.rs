//! Threads for calls that block: opening, allocating, syncing folders. A shard never blocks.

use std::future::Future;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Hands jobs to the threads, first come first served; they end when the last handle is gone.
#[derive(Clone)]
pub(super) struct Helper(Sender<Job>);

impl Helper {
    pub(super) fn start(shard: u32, threads: usize) -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        for thread in 0..threads {
            let jobs = Arc::clone(&jobs);
            Builder::new().name(format!("shard-{shard}-helper-{thread}")).spawn(move || {
                while let Some(job) = next(&jobs) {
                    job();
                }
            })?;
        }
        Ok(Self(sender))
    }

    /// Runs `job` on a thread. It runs to its end whoever waits for it.
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + 'static {
        let (sender, answer) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Who asked may have gone.
            let _ = sender.send(job());
        });
        let sent = self.0.send(job);
        async move {
            match (sent, answer.await) {
                (Ok(()), Ok(result)) => result,
                _ => Err(io::Error::other("the shard's helper thread is gone")),
            }
        }
    }
}

fn next(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
