//! What follows from a fault: the one table of retries, and how long to wait between them.
//!
//! Pure. Every kind of error has one rule for each sort of call; nothing else in the client decides
//! by the kind of an error.

use std::time::Duration;

use wire::{Fault, Kind, Reason};

/// Which sort of call got the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Anything asked of the master: queries, and mutations that carry a request id.
    Master,
    /// A read of a chunk, from one of its holders.
    Read,
    /// An operation of a stream, at the head of its chain.
    Append,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Tell the caller: repeating cannot help.
    Fail,
    /// The same again at the same place, after a pause.
    Pause,
    /// The same at the next master or replica.
    Next,
    /// What is known about the chunk is outdated: ask the master where it is now.
    Relocate,
    /// The chain does not do its work: tell the master, then ask where to go on.
    Roll,
    /// The stream's earlier operations are missing there: send from this number.
    ResendFrom(u64),
}

/// The table. `fault` is what an attempt of this sort of call gave.
pub(crate) fn rule(call: Call, fault: &Fault) -> Rule {
    match call {
        Call::Master => master(fault.kind),
        Call::Read => read(fault.kind),
        Call::Append => append(fault),
    }
}

fn master(kind: Kind) -> Rule {
    match kind {
        Kind::Overloaded => Rule::Pause,
        Kind::Unavailable | Kind::Unknown | Kind::NotLeader | Kind::Corrupt => Rule::Next,
        _ => Rule::Fail,
    }
}

fn read(kind: Kind) -> Rule {
    match kind {
        Kind::NotFound | Kind::StaleEpoch | Kind::NotPrimary | Kind::Sealed => Rule::Relocate,
        Kind::NotCommitted
        | Kind::Corrupt
        | Kind::Overloaded
        | Kind::NoSpace
        | Kind::Unavailable
        | Kind::NotLeader
        | Kind::Unknown => Rule::Next,
        _ => Rule::Fail,
    }
}

fn append(fault: &Fault) -> Rule {
    match (fault.kind, fault.reason) {
        (_, Reason::OutOfOrder) => Rule::ResendFrom(fault.detail),
        (_, Reason::Rwr | Reason::UnknownChunk) => Rule::Roll,
        (Kind::StaleEpoch | Kind::NotPrimary | Kind::Sealed | Kind::NotFound, _) => Rule::Relocate,
        // A full disk is the head's, not the cluster's: the master knows other servers.
        (Kind::NoSpace | Kind::Unavailable | Kind::Unknown, _) => Rule::Roll,
        (Kind::Overloaded | Kind::Corrupt | Kind::NotCommitted | Kind::NotLeader, _) => Rule::Pause,
        _ => Rule::Fail,
    }
}

/// The pause before repeat number `tries` (from zero): 10 ms doubling up to 1 s, of which `noise`
/// takes off up to half, so that many clients do not come back at once.
pub(crate) fn pause(tries: u32, noise: u64) -> Duration {
    let full = Duration::from_millis(10 << tries.min(7)).min(Duration::from_secs(1));
    let percent = u32::try_from(noise % 51).unwrap_or(0);
    full - full * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(call: Call, kind: Kind) -> Rule {
        rule(call, &Fault::new(kind, ""))
    }

    #[test]
    fn every_kind_has_its_rule_for_every_call() {
        use Rule::{Fail, Next, Pause, Relocate, Roll};
        let table = [
            (Kind::NotFound, Fail, Relocate, Relocate),
            (Kind::Exists, Fail, Fail, Fail),
            (Kind::Invalid, Fail, Fail, Fail),
            (Kind::StaleEpoch, Fail, Relocate, Relocate),
            (Kind::NotPrimary, Fail, Relocate, Relocate),
            (Kind::Sealed, Fail, Relocate, Relocate),
            (Kind::NotCommitted, Fail, Next, Pause),
            (Kind::Corrupt, Next, Next, Pause),
            (Kind::Overloaded, Pause, Next, Pause),
            (Kind::NoSpace, Fail, Next, Roll),
            (Kind::Unavailable, Next, Next, Roll),
            (Kind::Unauthorized, Fail, Fail, Fail),
            (Kind::Unknown, Next, Next, Roll),
            (Kind::Conflict, Fail, Fail, Fail),
            (Kind::Precondition, Fail, Fail, Fail),
            (Kind::NotLeader, Next, Next, Pause),
        ];
        assert_eq!(table.map(|row| row.0), Kind::ALL, "a new kind needs a rule");
        for (kind, master, read, append) in table {
            let got = [at(Call::Master, kind), at(Call::Read, kind), at(Call::Append, kind)];
            assert_eq!(got, [master, read, append], "{kind:?}");
        }
    }

    #[test]
    fn a_gap_names_where_to_go_on_and_a_restarted_replica_is_rolled_away() {
        let gap = Fault::refused(Reason::OutOfOrder, 7, "");
        assert_eq!(rule(Call::Append, &gap), Rule::ResendFrom(7));
        assert_eq!(rule(Call::Append, &Fault::refused(Reason::Rwr, 0, "")), Rule::Roll);
        assert_eq!(rule(Call::Append, &Fault::refused(Reason::ChunkFull, 0, "")), Rule::Relocate);
        assert_eq!(rule(Call::Append, &Fault::refused(Reason::StaleOp, 0, "")), Rule::Fail);
    }

    #[test]
    fn pauses_grow_to_a_second_and_never_lose_more_than_half() {
        let shortest: Vec<u128> = (0..12).map(|tries| pause(tries, 50).as_millis()).collect();
        let longest: Vec<u128> = (0..12).map(|tries| pause(tries, 0).as_millis()).collect();
        assert_eq!(longest, [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000, 1000]);
        assert_eq!(shortest, [5, 10, 20, 40, 80, 160, 320, 500, 500, 500, 500, 500]);
        assert_eq!(pause(u32::MAX, 51), Duration::from_secs(1));
    }
}
