//! What one sealed chunk needs: another copy, one copy fewer, or nothing. Pure.
//!
//! A *copy* can be read now. A holder *counts* unless its server is gone (dead, and that is believed), is
//! drained, or says that the replica is of no use. A suspect server's replicas count: it has its time.

use std::collections::BTreeMap;

use wire::ServerId;
use wire::repairs::Urgency;

use crate::master::entry::Dropping;

/// Most copies that may come to a server at a time: each takes a part of its disk.
pub(crate) const INTO_MAX: u32 = 1;
/// Most copies that a server may be a source of at a time.
pub(crate) const OUT_OF_MAX: u32 = 2;

/// A server as repair sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Heartbeats arrive.
    pub(crate) alive: bool,
    /// It is dead, and not one of too many that died at once.
    pub(crate) gone: bool,
    /// An operator wants it empty.
    pub(crate) drained: bool,
    /// Failure zone; may be empty.
    pub(crate) zone: String,
    /// Bytes free for new chunks; zero: it takes none.
    pub(crate) free: u64,
    /// Bytes taken by chunks.
    pub(crate) used: u64,
    /// Copies on their way to it.
    pub(crate) into: u32,
    /// Copies on their way from it.
    pub(crate) out_of: u32,
}

impl Seen {
    /// Part of its space that is taken, in thousandths.
    pub(crate) fn fill(&self) -> u64 {
        self.used.saturating_mul(1000) / (self.used + self.free).max(1)
    }

    fn takes_chunks(&self) -> bool {
        self.alive && !self.drained && self.free > 0
    }
}

/// All servers.
pub(crate) type Servers = BTreeMap<ServerId, Seen>;

/// A sealed chunk.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Replicas wanted.
    pub(crate) wanted: usize,
    /// Holders in the log, and whether their servers say that the replica is of no use.
    pub(crate) holders: Vec<(ServerId, bool)>,
    /// Servers with other content of it, which a copy may replace block by block.
    pub(crate) stale: Vec<ServerId>,
    /// Servers that a copy must not go to now: something else is under way there.
    pub(crate) barred: Vec<ServerId>,
    /// Somebody met trouble reading it.
    pub(crate) asked: bool,
}

/// What a chunk needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing, or nothing that can be done now.
    Nothing,
    /// One more copy.
    Copy(Urgency),
    /// This holder need not be one any more.
    Drop(ServerId, Dropping),
}

/// A copy that can begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// Holders in the order in which they are to be asked.
    pub(crate) sources: Vec<ServerId>,
    /// Servers that may get the copy; all as good by zone.
    pub(crate) targets: Vec<ServerId>,
}

/// What is known about the holders.
#[derive(Clone, Debug, Default)]
struct Count {
    /// Can be read now.
    copies: Vec<ServerId>,
    /// Count towards what is wanted.
    counted: Vec<ServerId>,
    /// On drained servers, else as good as counted.
    leaving: Vec<ServerId>,
}

fn count(view: &View, servers: &Servers) -> Count {
    let mut count = Count::default();
    for (server, unfit) in &view.holders {
        let Some(seen) = servers.get(server).filter(|_| !unfit) else { continue };
        if seen.alive {
            count.copies.push(*server);
        }
        match seen {
            Seen { drained: true, gone: false, .. } => count.leaving.push(*server),
            Seen { gone: false, .. } => count.counted.push(*server),
            _ => {}
        }
    }
    count
}

/// How many copies of it can be read now.
pub(crate) fn copies(view: &View, servers: &Servers) -> usize {
    count(view, servers).copies.len()
}

/// Whether this holder is still needed by the chunk, for the progress of a drain: a dead one is not when
/// enough others count.
pub(crate) fn is_held_by(view: &View, servers: &Servers, server: ServerId) -> bool {
    let holds = view.holders.iter().any(|(holder, _)| *holder == server);
    let is_there = servers.get(&server).is_some_and(|seen| !seen.gone);
    holds && (is_there || count(view, servers).counted.len() < view.wanted)
}

/// Decides.
pub(crate) fn judge(view: &View, servers: &Servers) -> Need {
    let found = count(view, servers);
    if found.counted.len() < view.wanted {
        if way(view, servers, false).is_some() {
            return Need::Copy(urgency(view, &found));
        }
        // No server is left that could take one: a drained one may go when everybody else has it.
        let mut others = servers.iter().filter(|(_, seen)| seen.alive && !seen.drained);
        let all_have = others.all(|(server, _)| found.counted.contains(server));
        let alive = found.counted.iter().filter(|server| servers[*server].alive).count();
        return match found.leaving.iter().find(|server| servers[*server].alive) {
            Some(leaving) if all_have && alive > 0 => Need::Drop(*leaving, Dropping::Drained),
            _ => Need::Nothing,
        };
    }
    // Only what can be read now is relied on when one goes.
    let alive: Vec<ServerId> = found.counted.iter().copied().filter(|server| servers[server].alive).collect();
    if alive.len() < view.wanted {
        return Need::Nothing;
    }
    if let Some(leaving) = found.leaving.iter().find(|server| servers[*server].alive) {
        return Need::Drop(*leaving, Dropping::Drained);
    }
    match surplus(view, servers, &alive) {
        Some(server) => Need::Drop(server, Dropping::Surplus),
        None => Need::Nothing,
    }
}

fn urgency(view: &View, found: &Count) -> Urgency {
    if found.copies.len() <= 1 {
        Urgency::Last
    } else if found.counted.len() + found.leaving.len() >= view.wanted {
        Urgency::Drain
    } else if view.asked {
        Urgency::Asked
    } else {
        Urgency::Few
    }
}

/// Of more than enough, the one that is missed least: its zone has another, then the fullest server.
fn surplus(view: &View, servers: &Servers, alive: &[ServerId]) -> Option<ServerId> {
    if alive.len() <= view.wanted {
        return None;
    }
    let shared = |server: &ServerId| {
        let zone = &servers[server].zone;
        !zone.is_empty() && alive.iter().filter(|other| servers[*other].zone == *zone).count() > 1
    };
    alive.iter().copied().max_by_key(|server| (shared(server), servers[server].fill(), *server))
}

/// How a copy can be made: from whom and to whom. `is_now`: only over servers that are free for it.
pub(crate) fn way(view: &View, servers: &Servers, is_now: bool) -> Option<Way> {
    let found = count(view, servers);
    let mut sources: Vec<ServerId> =
        found.copies.iter().copied().filter(|server| !is_now || servers[server].out_of < OUT_OF_MAX).collect();
    sources.sort_by_key(|server| (servers[server].out_of, servers[server].into, *server));
    if sources.is_empty() {
        return None;
    }
    // The busy ones come last; the target asks them only for what the others cannot give.
    sources.extend(found.copies.iter().filter(|server| servers[*server].out_of >= OUT_OF_MAX && is_now));
    let holds = |server: &ServerId| view.holders.iter().any(|(holder, unfit)| holder == server && !unfit);
    let takes = |(server, seen): &(&ServerId, &Seen)| {
        seen.takes_chunks() && !holds(server) && !view.barred.contains(server) && (!is_now || seen.into < INTO_MAX)
    };
    let all: Vec<ServerId> = servers.iter().filter(takes).map(|(server, _)| *server).collect();
    // One that has part of it needs less; one whose replica is of no use may come back, so it is the last.
    let stale = |server: &ServerId| view.stale.contains(server);
    let unfit = |server: &ServerId| view.holders.iter().any(|(holder, unfit)| holder == server && *unfit);
    let new_zone = |server: &ServerId| {
        let zone = &servers[server].zone;
        zone.is_empty() || found.counted.iter().all(|other| servers[other].zone != *zone)
    };
    let rank = |server: &ServerId| (unfit(server), !new_zone(server), !stale(server));
    let best = all.iter().map(rank).min()?;
    Some(Way { sources, targets: all.into_iter().filter(|server| rank(server) == best).collect() })
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
