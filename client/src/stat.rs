//! How long a file is: sealed chunks at the master, the open one at the head of its chain.

use std::time::Duration;

use wire::locate::Location;
use wire::member::Member;
use wire::namespace::{Attr, Stat};
use wire::read::Version;
use wire::report::Trouble;
use wire::{Fault, Kind, NamePath, Reason};

use crate::client::Inner;
use crate::clock::{left, now};
use crate::error::Outcome;
use crate::pool::is_silence;
use crate::retry::pause;
use crate::{Client, Error};

/// How long one member may take to say how far it is.
const ASK: Duration = Duration::from_secs(2);

/// How long to wait for the master to seal the chunk of a head that does not answer. Only a sealed
/// length holds everything acknowledged; another member may know less.
const SETTLE: Duration = Duration::from_secs(8);

impl Client {
    /// What a name stands for. `attr.len` is the whole committed length: the head of the open chunk
    /// was asked, so it covers every append acknowledged before the call.
    ///
    /// While the head does not answer this waits for the master to seal the chunk; when that takes
    /// long, the other members' word is taken, which may lag behind the newest appends.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Unavailable` when neither the master nor a member answers.
    pub async fn stat(&self, path: &NamePath) -> Result<Attr, Error> {
        let deadline = now() + SETTLE.min(self.inner.config.deadline);
        for tries in 0.. {
            let mut attr = self.inner.query(&Stat { path: path.as_str().into() }).await?;
            let Some(tail) = attr.tail.clone() else { return Ok(attr) };
            let wait = pause(tries, self.inner.noise.next());
            let fault = match self.inner.committed_at_head(&tail).await {
                Ok(len) => {
                    attr.len += u64::from(len);
                    return Ok(attr);
                }
                Err(fault) => fault,
            };
            if left(deadline) <= wait {
                let len = self.inner.committed_elsewhere(&tail, fault).await?;
                attr.len += u64::from(len);
                return Ok(attr);
            }
            self.inner.counters.retries.add(1);
            if tries == 0 && is_silence(&fault) {
                let suspect = tail.members.first().map(|head| head.server).unwrap_or_default();
                self.inner.report(tail.chunk, tail.epoch, Trouble::NoAnswer, suspect).await;
            }
            tokio::time::sleep(wait).await;
        }
        Err(Error::new(Kind::Unavailable, "the file was asked for too often"))
    }
}

impl Inner {
    async fn committed_at_head(&self, tail: &Location) -> Outcome<u32> {
        let head = tail.members.first().ok_or_else(|| Fault::new(Kind::Unavailable, "a chunk without members"))?;
        match self.committed_at(tail, head).await {
            // Sealed since the master was asked: its length is final.
            Err(fault) if fault.reason == Reason::Sealed => u32::try_from(fault.detail).map_err(|_| fault),
            outcome => outcome,
        }
    }

    /// The furthest of the other members.
    async fn committed_elsewhere(&self, tail: &Location, fault: Fault) -> Outcome<u32> {
        let asked = tail.members.iter().skip(1).map(|member| self.committed_at(tail, member));
        let answers = futures_util::future::join_all(asked).await;
        answers.into_iter().filter_map(Result::ok).max().ok_or(fault)
    }

    async fn committed_at(&self, tail: &Location, member: &Member) -> Outcome<u32> {
        let limit = ASK.min(self.config.deadline);
        let conn = self.pool.chunk(member, tail.chunk, limit).await?;
        let (version, _) = conn.call(&Version { chunk: tail.chunk, epoch: tail.epoch }, limit).await?;
        self.saw(tail.chunk, tail.epoch, version.committed_seq);
        Ok(version.committed_len)
    }
}
