//! How long a file is: sealed chunks at the master, the open one at the head of its chain.

use std::time::Duration;

use wire::locate::Location;
use wire::member::Member;
use wire::namespace::{Attr, Stat};
use wire::read::{Read, Version};
use wire::report::Trouble;
use wire::{Epoch, Fault, Kind, NamePath, Reason, Request, Seq};

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
            if tries == 0 && (is_silence(&fault) || fault.reason == Reason::Rwr) {
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

    /// The furthest that any member has heard of, one that restarted included: a read says so along
    /// with its bytes, or when it refuses.
    async fn committed_elsewhere(&self, tail: &Location, fault: Fault) -> Outcome<u32> {
        let read = Read { chunk: tail.chunk, epoch: Epoch(0), offset: 0, len: 1, min_seq: Seq(0) };
        let asked = tail.members.iter().map(|member| self.ask_member(tail, member, &read));
        let answers = futures_util::future::join_all(asked).await.into_iter().filter_map(|answer| match answer {
            Ok(data) => Some(data.committed_len),
            Err(fault) if fault.reason == Reason::NotCommitted => u32::try_from(fault.detail).ok(),
            Err(_) => None,
        });
        answers.max().ok_or(fault)
    }

    async fn committed_at(&self, tail: &Location, member: &Member) -> Outcome<u32> {
        let version = self.ask_member(tail, member, &Version { chunk: tail.chunk, epoch: tail.epoch }).await?;
        self.saw(tail.chunk, tail.epoch, version.committed_seq);
        Ok(version.committed_len)
    }

    async fn ask_member<R: Request>(&self, tail: &Location, member: &Member, request: &R) -> Outcome<R::Reply> {
        let limit = ASK.min(self.config.deadline);
        let conn = self.pool.chunk(member, tail.chunk, limit).await?;
        conn.call(request, limit).await.map(|(reply, _)| reply)
    }
}
