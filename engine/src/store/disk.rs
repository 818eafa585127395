//! The disk itself, as its user sees it: whether it answers, whether it takes new chunks, which of
//! its slots are worn out.

use std::rc::Rc;

use wire::{ChunkHandle, Term};

use super::StoreError;
use super::header::Flags;
use super::page::DiskState;
use super::shard::Store;
use crate::runtime::Runtime;

impl<R: Runtime> Store<R> {
    /// Why the disk stopped answering (rule R9); `None` while it works. The first cause stays.
    #[must_use]
    pub fn fenced(&self) -> Option<String> {
        match self.inner.shared.check() {
            Err(StoreError::Fenced(cause)) => Some(cause),
            _ => None,
        }
    }

    /// Fenced, if it is now, else as the DISK page says: only a normal disk takes new chunks.
    #[must_use]
    pub fn disk_state(&self) -> DiskState {
        if self.fenced().is_some() { DiskState::Fenced } else { self.inner.shared.disk().state }
    }

    /// The highest term of a master that this disk knows.
    #[must_use]
    pub fn term(&self) -> Term {
        self.inner.shared.term()
    }

    /// A master of this term has spoken: an older one is refused from now on. For a server with several
    /// disks, of which each command names one chunk and so reaches one.
    ///
    /// # Errors
    ///
    /// `OldTerm`, with the highest one heard of.
    pub fn obey(&self, term: Term) -> Result<(), StoreError> {
        self.inner.shared.obey(term)
    }

    /// The disk takes no new chunks from now on; those on it are served. Durable on return. Says whether it
    /// took some before. Cancelling leaves it undecided on the disk; asking again settles it.
    ///
    /// # Errors
    ///
    /// `Fenced`.
    pub async fn drain(&self) -> Result<bool, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let last = Rc::clone(inner);
        let work = async move {
            let writer = last.shared.disk_writer(&last.io.rt).await;
            let took = last.shared.disk().state == DiskState::Normal;
            if took {
                let written = writer.write(&last.io, |disk| disk.state = DiskState::Draining).await;
                written.map_err(|error| last.fence("DISK could not be written", &error))?;
            }
            Ok(took)
        };
        inner.to_its_end(work).await
    }

    /// The slot of this chunk holds no other after it: one of its blocks stays bad after a repair. Written
    /// down by the next checkpoint; until then a restart forgets it, and a scrub finds it again. Says
    /// whether it was in use before.
    pub fn quarantine(&self, chunk: ChunkHandle) -> bool {
        let mut state = self.inner.state.borrow_mut();
        let next_lsn = state.log.last_lsn() + 1;
        let Some(held) = state.chunks.get_mut(&chunk) else { return false };
        let hdr = &mut held.replica.hdr;
        if hdr.flags.has(Flags::QUARANTINED) {
            return false;
        }
        hdr.flags.set(Flags::QUARANTINED);
        // Its header has to be written again, though no record says so.
        held.dirty_lsn.get_or_insert(next_lsn);
        tracing::error!(%chunk, slot = held.slot(), root = %self.inner.shared.root.display(), "slot is kept out of use");
        true
    }

    /// Slots that hold nothing and never will, or will not after the chunk in them.
    #[must_use]
    pub fn quarantined(&self) -> u64 {
        let state = self.inner.state.borrow();
        let free = state.free.iter().filter(|free| free.is_quarantined()).count();
        let held = state.chunks.values().filter(|chunk| chunk.replica.hdr.flags.has(Flags::QUARANTINED)).count();
        (free + held) as u64
    }
}
