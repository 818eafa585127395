//! REOPEN and RESTORE: a chunk that was fixed, or on its way out, comes back.

use wire::{Epoch, Term};

use super::Replica;
use crate::store::StoreError;
use crate::store::header::{EpochStart, Flags, HISTORY, SlotState};
use crate::store::record::Reopen;

impl Replica {
    /// Whether REOPEN may follow; `false`: exactly this re-open is what holds already.
    pub(crate) fn check_reopen(&self, epoch: Epoch, reopen: &Reopen) -> Result<bool, StoreError> {
        let hdr = &self.hdr;
        match hdr.state {
            SlotState::Open if hdr.epoch == epoch => {
                // After FINAL or SEAL the header holds the digest of what comes next.
                let digest_of_reopen = !hdr.flags.has(Flags::CLOSED | Flags::FILLED);
                let same = hdr.flags.has(Flags::FIXED)
                    && (&hdr.members, hdr.my_position) == (&reopen.members, reopen.my_position)
                    && hdr.durable_len == reopen.len
                    && (hdr.sealed_digest == reopen.digest || !digest_of_reopen);
                if same { Ok(false) } else { Err(StoreError::Mismatch) }
            }
            SlotState::Open => Err(StoreError::StaleEpoch(hdr.promised)),
            SlotState::Rwr => Err(StoreError::Rwr),
            SlotState::Free | SlotState::Condemned => Err(StoreError::UnknownChunk),
            SlotState::Sealed if epoch <= hdr.epoch || epoch < hdr.promised => {
                Err(StoreError::StaleEpoch(hdr.promised))
            }
            SlotState::Sealed => {
                // A damaged replica may lack operations that the others remember: it would answer differently.
                let equal = (hdr.sealed_len, hdr.sealed_digest) == (reopen.len, reopen.digest);
                if equal && !hdr.flags.has(Flags::DAMAGED) { Ok(true) } else { Err(StoreError::Mismatch) }
            }
        }
    }

    /// The log begins anew at entry 1; content and dedup table stay.
    pub(super) fn reopen(&mut self, epoch: Epoch, reopen: &Reopen) -> Result<(), StoreError> {
        if !self.check_reopen(epoch, reopen)? {
            return Err(StoreError::ChunkExists(epoch));
        }
        self.begin_epoch(epoch, 0);
        let hdr = &mut self.hdr;
        (hdr.promised, hdr.state) = (epoch, SlotState::Open);
        hdr.flags.set(Flags::FIXED);
        (hdr.members, hdr.my_position) = (reopen.members.clone(), reopen.my_position);
        (hdr.last_seq, hdr.committed_seq, hdr.suspect_seq, hdr.last_overwrite_seq) = (0, 0, 0, 0);
        self.claimed = 0;
        self.ends.clear();
        self.obey(reopen.term);
        Ok(())
    }

    /// From here on the log is that of `epoch`; the last entry before is `seq`.
    pub(super) fn begin_epoch(&mut self, epoch: Epoch, seq: u64) {
        let start = EpochStart { epoch: epoch.0, start_len: self.hdr.durable_len, start_seq: seq };
        self.hdr.history.copy_within(..HISTORY - 1, 1);
        self.hdr.history[0] = start;
        self.hdr.epoch = epoch;
    }

    /// Whether `authority` undoes the CONDEMN: one that is older is a ghost of the network.
    pub(crate) fn check_restore(&self, authority: u64) -> Result<(), StoreError> {
        let may = self.hdr.state == SlotState::Condemned && authority >= self.hdr.authority;
        if may { Ok(()) } else { Err(StoreError::Mismatch) }
    }

    /// Back to the state before CONDEMN; whoever was open has missed what its chain did meanwhile.
    pub(super) fn restore(&mut self, term: Term, authority: u64) -> Result<(), StoreError> {
        self.check_restore(authority)?;
        self.hdr.state = if self.hdr.prior_state == SlotState::Open { SlotState::Rwr } else { self.hdr.prior_state };
        self.hdr.prior_state = SlotState::Free;
        (self.hdr.authority, self.hdr.condemned_at) = (0, 0);
        self.obey(term);
        Ok(())
    }
}
