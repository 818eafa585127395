//! What the head of a chain does with an append, and what a member does with a forwarded entry.
//!
//! The decisions only: no I/O, no clock. What the store knows about the chunk comes in, what must
//! happen goes out. Replication rules W3, W4 and W7, and the table of exactly-once operations.

use wire::forward::NakReason;
use wire::limits::{CHUNK_SIZE, OPS_IN_FLIGHT_MAX, WINDOW_LEN_MAX};
use wire::member::ReplicaState;
use wire::{DedupEntry, Epoch, Reason, Seq};

use crate::canary::weakened;

/// What is known about the chunk when a message about it arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// State of this replica.
    pub(crate) state: ReplicaState,
    /// Epoch of its log.
    pub(crate) epoch: Epoch,
    /// Epoch it has promised.
    pub(crate) promised: Epoch,
    /// Its place in the chain, the head is zero.
    pub(crate) position: u8,
    /// A FINAL was accepted, or is about to be.
    pub(crate) closing: bool,
    /// Re-opened: its length is final, it takes overwrites and nothing else.
    pub(crate) fixed: bool,
    /// Bytes accepted.
    pub(crate) len: u32,
    /// Final length, when sealed.
    pub(crate) sealed_len: u32,
    /// Number of the next entry.
    pub(crate) next_seq: Seq,
    /// Bytes accepted and not yet committed.
    pub(crate) window_len: u64,
}

/// What is known about the operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Its line in the dedup table.
    pub(crate) entry: Option<DedupEntry>,
    /// It is in the log and committed, here or in an earlier chunk.
    pub(crate) committed: bool,
    /// Newest operation of its stream in the table; zero for an unknown stream.
    pub(crate) newest: u64,
    /// Whether the table takes one more entry.
    pub(crate) table: Table,
}

/// Room in the dedup table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// One more entry fits.
    Room,
    /// Full, but some streams have ended: the next chunk inherits less.
    Forgettable,
    /// Full of streams that may still ask again.
    Full,
}

/// An operation as its head sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Where it writes, chunk offset; `None` for an append.
    pub(crate) at: Option<u32>,
    /// The chain the client knows.
    pub(crate) epoch: Epoch,
    /// Its number in its stream.
    pub(crate) op: u64,
    /// Lowest number of the stream without an answer.
    pub(crate) first_unacked: u64,
    /// Length of the whole operation.
    pub(crate) op_len: u32,
}

/// What the head does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is in the log already and committed: the same answer as before.
    Again(DedupEntry),
    /// It is in the log already, not yet committed: answer when it is.
    Wait(DedupEntry),
    /// Assign the next entries to it.
    New,
    /// The operation does not fit: refuse, and end the log.
    Full,
    /// The dedup table is full of streams that are over: refuse for now, and forget them.
    Forget,
    /// Refuse; nothing was changed.
    Refuse(Reason, u64),
    /// Acknowledged operations are missing: refuse and tell the master.
    Lost,
}

/// Decides about one operation (replication rules W3 and W4, section 6).
pub(crate) fn admit(standing: Option<&Standing>, asked: &Asked, known: &Known) -> Admission {
    let Some(standing) = standing else { return Admission::Refuse(Reason::UnknownChunk, 0) };
    if let Some(reason) = not_open(standing) {
        let detail = if reason == Reason::Sealed { u64::from(standing.sealed_len) } else { 0 };
        return Admission::Refuse(reason, detail);
    }
    if standing.position != 0 {
        return Admission::Refuse(Reason::NotPrimary, 0);
    }
    if asked.epoch != standing.epoch || standing.promised > standing.epoch {
        return Admission::Refuse(Reason::StaleEpoch, u64::from(standing.promised.0));
    }
    if let Some(entry) = known.entry {
        return if known.committed { Admission::Again(entry) } else { Admission::Wait(entry) };
    }
    if asked.op <= known.newest {
        return Admission::Refuse(Reason::StaleOp, 0);
    }
    if asked.first_unacked > known.newest + 1 {
        return Admission::Lost;
    }
    if asked.op > known.newest + 1 && !weakened!(GapsAdmitted) {
        return Admission::Refuse(Reason::OutOfOrder, known.newest + 1);
    }
    if let Some(refusal) = misplaced(standing, asked) {
        return refusal;
    }
    if standing.closing {
        return Admission::Refuse(Reason::ChunkFull, 0);
    }
    if asked.op - asked.first_unacked >= OPS_IN_FLIGHT_MAX {
        return Admission::Refuse(Reason::Busy, 0);
    }
    match known.table {
        Table::Room => {}
        Table::Forgettable if standing.fixed => return Admission::Forget,
        Table::Forgettable => return Admission::Full,
        Table::Full => return Admission::Refuse(Reason::Busy, 0),
    }
    if !standing.fixed && u64::from(standing.len) + u64::from(asked.op_len) > u64::from(CHUNK_SIZE) {
        return Admission::Full;
    }
    if standing.window_len + u64::from(asked.op_len) > WINDOW_LEN_MAX {
        return Admission::Refuse(Reason::Busy, 0);
    }
    Admission::New
}

/// A chunk takes appends while its length may grow, and overwrites below its end once it is final.
fn misplaced(standing: &Standing, asked: &Asked) -> Option<Admission> {
    let len = u64::from(standing.len);
    match asked.at {
        None if standing.fixed => Some(Admission::Refuse(Reason::Sealed, len)),
        None => None,
        Some(at) if standing.fixed && u64::from(at) + u64::from(asked.op_len) <= len => None,
        Some(_) => Some(Admission::Refuse(Reason::BadOffset, len)),
    }
}

fn not_open(standing: &Standing) -> Option<Reason> {
    match standing.state {
        ReplicaState::Open => None,
        ReplicaState::Rwr => Some(Reason::Rwr),
        ReplicaState::Sealed => Some(Reason::Sealed),
        ReplicaState::Condemned => Some(Reason::UnknownChunk),
    }
}

/// What a member does with an entry from its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acceptance {
    /// Write it and pass it on.
    Accept,
    /// It is here already: say again how far everything is durable.
    Duplicate,
    /// Refuse it.
    Nak(NakReason, Seq),
}

/// Decides about one forwarded entry (replication rule W7).
pub(crate) fn accept(standing: Option<&Standing>, epoch: Epoch, seq: Seq) -> Acceptance {
    let Some(standing) = standing else { return Acceptance::Nak(NakReason::Fenced, Seq(0)) };
    let fenced = standing.state != ReplicaState::Open
        || standing.epoch != epoch
        || standing.promised > epoch
        || standing.position == 0;
    if fenced {
        return Acceptance::Nak(NakReason::Fenced, standing.next_seq);
    }
    if seq < standing.next_seq {
        return Acceptance::Duplicate;
    }
    if seq > standing.next_seq {
        return Acceptance::Nak(NakReason::Gap, standing.next_seq);
    }
    if standing.closing {
        return Acceptance::Nak(NakReason::Fenced, standing.next_seq);
    }
    Acceptance::Accept
}

/// Largest operation end at or below `durable`: what may be called committed (rule W9). `ends` are
/// the last entries of operations, ascending.
pub(crate) fn committed(ends: impl Iterator<Item = Seq>, durable: Seq) -> Option<Seq> {
    ends.take_while(|end| *end <= durable).last()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{ChunkHandle, OpId};

    const OPEN: Standing = Standing {
        state: ReplicaState::Open,
        epoch: Epoch(3),
        promised: Epoch(3),
        position: 0,
        closing: false,
        fixed: false,
        len: 100,
        sealed_len: 0,
        next_seq: Seq(5),
        window_len: 0,
    };
    const ASKED: Asked = Asked { at: None, epoch: Epoch(3), op: 8, first_unacked: 6, op_len: 10 };
    const UNKNOWN: Known = Known { entry: None, committed: false, newest: 7, table: Table::Room };

    fn entry() -> DedupEntry {
        DedupEntry { id: OpId { op: 8, ..OpId::default() }, chunk: ChunkHandle(1), offset: 90, len: 10 }
    }

    #[test]
    fn the_next_operation_of_a_stream_is_admitted() {
        assert_eq!(admit(Some(&OPEN), &ASKED, &UNKNOWN), Admission::New);
        let first = Asked { op: 1, first_unacked: 1, ..ASKED };
        assert_eq!(admit(Some(&OPEN), &first, &Known { newest: 0, ..UNKNOWN }), Admission::New);
    }

    #[test]
    fn a_retry_gets_the_first_answer_and_is_never_written_twice() {
        let known = Known { entry: Some(entry()), committed: true, newest: 8, table: Table::Full };
        assert_eq!(admit(Some(&OPEN), &ASKED, &known), Admission::Again(entry()));
        let known = Known { committed: false, ..known };
        assert_eq!(admit(Some(&OPEN), &ASKED, &known), Admission::Wait(entry()));
    }

    #[test]
    fn a_retry_is_answered_even_when_the_chunk_takes_nothing_new() {
        let closing = Standing { closing: true, ..OPEN };
        let known = Known { entry: Some(entry()), committed: true, newest: 8, table: Table::Full };
        assert_eq!(admit(Some(&closing), &ASKED, &known), Admission::Again(entry()));
        assert_eq!(admit(Some(&closing), &ASKED, &UNKNOWN), Admission::Refuse(Reason::ChunkFull, 0));
    }

    #[test]
    fn gaps_ghosts_and_losses_are_told_apart() {
        let gap = Asked { op: 9, ..ASKED };
        assert_eq!(admit(Some(&OPEN), &gap, &UNKNOWN), Admission::Refuse(Reason::OutOfOrder, 8));
        let ghost = Asked { op: 5, first_unacked: 5, ..ASKED };
        assert_eq!(admit(Some(&OPEN), &ghost, &UNKNOWN), Admission::Refuse(Reason::StaleOp, 0));
        let lost = Asked { op: 10, first_unacked: 10, ..ASKED };
        assert_eq!(admit(Some(&OPEN), &lost, &UNKNOWN), Admission::Lost);
    }

    #[test]
    fn only_the_unfenced_head_of_the_same_epoch_admits() {
        let cases = [
            (Standing { position: 1, ..OPEN }, Reason::NotPrimary),
            (Standing { promised: Epoch(4), ..OPEN }, Reason::StaleEpoch),
            (Standing { epoch: Epoch(4), promised: Epoch(4), ..OPEN }, Reason::StaleEpoch),
            (Standing { state: ReplicaState::Rwr, ..OPEN }, Reason::Rwr),
            (Standing { state: ReplicaState::Sealed, ..OPEN }, Reason::Sealed),
            (Standing { state: ReplicaState::Condemned, ..OPEN }, Reason::UnknownChunk),
        ];
        for (standing, want) in cases {
            let got = admit(Some(&standing), &ASKED, &UNKNOWN);
            assert!(matches!(got, Admission::Refuse(reason, _) if reason == want), "{standing:?} {got:?}");
        }
        assert_eq!(admit(None, &ASKED, &UNKNOWN), Admission::Refuse(Reason::UnknownChunk, 0));
    }

    #[test]
    fn an_operation_that_does_not_fit_ends_the_chunk_and_one_that_just_fits_does_not() {
        let nearly = Standing { len: CHUNK_SIZE - 10, ..OPEN };
        assert_eq!(admit(Some(&nearly), &ASKED, &UNKNOWN), Admission::New);
        let full = Standing { len: CHUNK_SIZE - 9, ..OPEN };
        assert_eq!(admit(Some(&full), &ASKED, &UNKNOWN), Admission::Full);
    }

    #[test]
    fn a_re_opened_chunk_takes_overwrites_below_its_end_and_nothing_else() {
        let fixed = Standing { fixed: true, ..OPEN };
        let write = |at| Asked { at: Some(at), ..ASKED };
        assert_eq!(admit(Some(&fixed), &write(90), &UNKNOWN), Admission::New);
        assert_eq!(admit(Some(&fixed), &write(91), &UNKNOWN), Admission::Refuse(Reason::BadOffset, 100));
        assert_eq!(admit(Some(&fixed), &write(u32::MAX), &UNKNOWN), Admission::Refuse(Reason::BadOffset, 100));
        assert_eq!(admit(Some(&fixed), &ASKED, &UNKNOWN), Admission::Refuse(Reason::Sealed, 100));
        assert_eq!(admit(Some(&OPEN), &write(0), &UNKNOWN), Admission::Refuse(Reason::BadOffset, 100));
        let full = Standing { len: CHUNK_SIZE, ..fixed };
        assert_eq!(admit(Some(&full), &write(0), &UNKNOWN), Admission::New, "it does not grow");
    }

    #[test]
    fn a_re_opened_chunk_forgets_streams_instead_of_ending() {
        let fixed = Standing { fixed: true, ..OPEN };
        let write = Asked { at: Some(0), ..ASKED };
        let full = |table| Known { table, ..UNKNOWN };
        assert_eq!(admit(Some(&fixed), &write, &full(Table::Forgettable)), Admission::Forget);
        assert_eq!(admit(Some(&fixed), &write, &full(Table::Full)), Admission::Refuse(Reason::Busy, 0));
    }

    #[test]
    fn a_full_window_is_overload_and_not_an_unbounded_queue() {
        let busy = Standing { window_len: WINDOW_LEN_MAX - 9, ..OPEN };
        assert_eq!(admit(Some(&busy), &ASKED, &UNKNOWN), Admission::Refuse(Reason::Busy, 0));
    }

    #[test]
    fn a_full_dedup_table_ends_the_chunk_or_pushes_back_but_drops_no_entry() {
        let full = Known { table: Table::Full, ..UNKNOWN };
        assert_eq!(admit(Some(&OPEN), &ASKED, &full), Admission::Refuse(Reason::Busy, 0));
        let forgettable = Known { table: Table::Forgettable, ..UNKNOWN };
        assert_eq!(admit(Some(&OPEN), &ASKED, &forgettable), Admission::Full);
    }

    #[test]
    fn a_stream_has_a_bounded_number_of_operations_in_flight() {
        let known = Known { newest: 100, ..UNKNOWN };
        let asked = Asked { op: 101, first_unacked: 101 - OPS_IN_FLIGHT_MAX, ..ASKED };
        assert_eq!(admit(Some(&OPEN), &asked, &known), Admission::Refuse(Reason::Busy, 0));
        let asked = Asked { first_unacked: asked.first_unacked + 1, ..asked };
        assert_eq!(admit(Some(&OPEN), &asked, &known), Admission::New);
    }

    #[test]
    fn a_member_takes_exactly_the_next_entry_of_its_unfenced_epoch() {
        let member = Standing { position: 1, ..OPEN };
        assert_eq!(accept(Some(&member), Epoch(3), Seq(5)), Acceptance::Accept);
        assert_eq!(accept(Some(&member), Epoch(3), Seq(4)), Acceptance::Duplicate);
        assert_eq!(accept(Some(&member), Epoch(3), Seq(6)), Acceptance::Nak(NakReason::Gap, Seq(5)));
        let fenced = Acceptance::Nak(NakReason::Fenced, Seq(5));
        assert_eq!(accept(Some(&member), Epoch(2), Seq(5)), fenced);
        assert_eq!(accept(Some(&Standing { promised: Epoch(4), ..member }), Epoch(3), Seq(5)), fenced);
        assert_eq!(accept(Some(&Standing { state: ReplicaState::Rwr, ..member }), Epoch(3), Seq(5)), fenced);
        assert_eq!(accept(Some(&Standing { closing: true, ..member }), Epoch(3), Seq(5)), fenced);
        assert_eq!(accept(Some(&OPEN), Epoch(3), Seq(5)), fenced);
    }

    #[test]
    fn committed_stops_at_the_end_of_a_complete_operation() {
        let ends = [Seq(2), Seq(5), Seq(9)];
        assert_eq!(committed(ends.into_iter(), Seq(1)), None);
        assert_eq!(committed(ends.into_iter(), Seq(8)), Some(Seq(5)));
        assert_eq!(committed(ends.into_iter(), Seq(9)), Some(Seq(9)));
    }
}
