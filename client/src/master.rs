//! Calls to the master: any of several addresses, repeated under one request id until the deadline.

use std::sync::atomic::Ordering;

use tokio::time::Instant;
use wire::locate::{Intent, Locate, LocateChunk, Locations, Position};
use wire::report::{Report, Trouble};
use wire::{ChunkHandle, Epoch, Fault, InodeId, Kind, Request, RequestId, ServerId};

use crate::client::Inner;
use crate::clock::{left, now};
use crate::error::{Outcome, unreachable};
use crate::retry::{Call, Rule, pause, rule};

/// Pauses between repeats stop growing here, at 160 ms: a master that restarts should not be missed by long.
const TRIES_MAX: u32 = 4;

/// Reports on their way at once; more are dropped, because whatever is wrong will be noticed again.
pub(crate) const REPORTS_MAX: usize = 16;

impl Inner {
    /// A question: an unknown outcome is no more than no answer.
    pub(crate) async fn query<R: Request>(&self, request: &R) -> Outcome<R::Reply> {
        self.ask(request, now() + self.config.deadline).await.map_err(|fault| match fault.kind {
            Kind::Unknown => Fault { kind: Kind::Unavailable, ..fault },
            _ => fault,
        })
    }

    /// A change, which must carry a [`RequestId`]: every repeat is the same request.
    pub(crate) async fn change<R: Request>(&self, request: &R) -> Outcome<R::Reply> {
        self.ask(request, now() + self.config.deadline).await
    }

    /// A new id for one change.
    pub(crate) fn request_id(&self) -> RequestId {
        RequestId { client: self.identity, number: self.requests.fetch_add(1, Ordering::Relaxed) }
    }

    async fn ask<R: Request>(&self, request: &R, deadline: Instant) -> Outcome<R::Reply> {
        let masters = &self.config.masters;
        if masters.is_empty() {
            return Err(unreachable("no master is configured"));
        }
        // One master that hangs must not use up the whole deadline.
        let attempt = self.config.deadline / 3;
        let mut unsure = false;
        for tries in 0.. {
            let leader = self.leader.load(Ordering::Relaxed) % masters.len();
            let fault = match self.ask_once(&masters[leader], request, attempt.min(left(deadline))).await {
                Ok(reply) => return Ok(reply),
                Err(fault) => fault,
            };
            unsure |= fault.kind == Kind::Unknown;
            match rule(Call::Master, &fault) {
                Rule::Next => {
                    let next = leader_hint(&fault, masters).unwrap_or(leader + 1) % masters.len();
                    self.leader.store(next, Ordering::Relaxed);
                }
                Rule::Pause => {}
                _ => return Err(fault),
            }
            let wait = pause(tries.min(TRIES_MAX), self.noise.next());
            if left(deadline) <= wait {
                let kind = if unsure { Kind::Unknown } else { fault.kind };
                return Err(Fault { kind, ..fault });
            }
            self.counters.retries.add(1);
            tokio::time::sleep(wait).await;
        }
        Err(unreachable("the master was asked too often"))
    }

    async fn ask_once<R: Request>(&self, address: &str, request: &R, limit: std::time::Duration) -> Outcome<R::Reply> {
        let deadline = now() + limit;
        let conn = self.pool.get(address, ServerId(0), 0, limit).await?;
        conn.call(request, left(deadline)).await.map(|(reply, _)| reply)
    }

    pub(crate) async fn locate(&self, file: InodeId, at: Position, intent: Intent, count: u32) -> Outcome<Locations> {
        self.query(&Locate { file, at, intent, count }).await
    }

    pub(crate) async fn locate_chunk(&self, chunk: ChunkHandle) -> Outcome<Locations> {
        self.query(&LocateChunk { chunk }).await
    }

    /// Tells the master about trouble and waits until it has heard; a report that fails is not repeated.
    pub(crate) async fn report(&self, chunk: ChunkHandle, epoch: Epoch, trouble: Trouble, suspect: ServerId) {
        self.counters.reports.add(1);
        tracing::warn!(%chunk, %epoch, ?trouble, %suspect, "reporting trouble to the master");
        if let Err(fault) = self.query(&Report { chunk, epoch, trouble, suspect }).await {
            tracing::warn!(%chunk, %epoch, error = %fault, "report not heard");
        }
    }
}

/// The position of the master that a [`Kind::NotLeader`] names, if it is one of ours.
fn leader_hint(fault: &Fault, masters: &[String]) -> Option<usize> {
    if fault.kind != Kind::NotLeader {
        return None;
    }
    masters.iter().position(|address| fault.text.split_whitespace().any(|word| word == address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_leader_is_taken_only_when_it_is_one_of_ours() {
        let masters = ["a:1".to_owned(), "b:1".to_owned(), "b:12".to_owned()];
        let says = |kind, text: &str| leader_hint(&Fault::new(kind, text), &masters);
        assert_eq!(says(Kind::NotLeader, "the leader is b:12"), Some(2));
        assert_eq!(says(Kind::NotLeader, "the leader is evil:1"), None);
        assert_eq!(says(Kind::Unavailable, "b:1"), None);
    }
}
