//! INSTALL: a slot holds a finished copy from now on.

use super::{Replica, empty};
use crate::store::dedup::DedupTable;
use crate::store::header::{Hdr, SlotState};
use crate::store::layout::Child;
use crate::store::page::Common;

impl Replica {
    /// The finished copy that `body` describes, in the slot whose header is `slot`. Which version of the
    /// header lies on the disk is the slot's to know: `page_seq`, `boot_gen` and `lsn` of `body` count for
    /// nothing.
    pub(crate) fn installed(slot: &Hdr, body: &Hdr, dedup: DedupTable) -> Self {
        let mut hdr = body.clone();
        hdr.common = Common { chunk: body.common.chunk, ..slot.common.clone() };
        Self::loaded(hdr, empty(), dedup)
    }
}

/// Whether a header may be installed: of a sealed chunk, whole, with everything in place.
pub(crate) fn installable(hdr: &Hdr) -> bool {
    hdr.state == SlotState::Sealed && hdr.durable_len == hdr.sealed_len && !hdr.has_child(Child::Tail)
}
