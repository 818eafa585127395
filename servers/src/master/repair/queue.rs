//! Which chunks need a copy, which of them is next, what runs. Pure: state, servers and time come in,
//! steps go out. Not logged: a new master finds the same by looking.
//!
//! All chunks are looked at in turn, a part at a time, so that no look takes long; what was found is kept
//! in order of urgency and judged again when its turn comes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use wire::repairs::{DrainStatus, RunningCopy, Urgency, Waiting, WaitingChunk};
use wire::{ChunkHandle, ServerId};

use super::eject::Ejected;
use super::judge::{self, Need, Seen, Servers, View};
use crate::master::entry::Dropping;
use crate::master::placement::{self, Candidate};
use crate::master::state::{Chunk, State, Tuning};

/// Chunks looked at under one lock.
const LOOK_MAX: usize = 20_000;
/// Waiting chunks judged again in one look: those in front may all wait for busy servers.
const BEGIN_MAX: usize = 500;
/// Steps of one look: each is an entry of the log.
const STEPS_MAX: usize = 64;
/// Copies at a time in the whole cluster.
const RUNNING_MAX: usize = 64;
/// A chunk that could not be copied is tried again after this; doubled up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));
/// Trouble with reading a chunk makes it urgent for so long.
const ASKED_FOR: Duration = Duration::from_secs(60);
/// Fill of two servers may differ by so many thousandths.
const UNEVEN: u64 = 100;
/// Chunks remembered for balance.
const BALANCE_MAX: usize = 64;
/// A replica that could not fill what it lacks so often is given a copy.
const JOINS_MAX: u32 = 3;
/// The speed is that of copies that ended in this time.
const SPEED_OVER: Duration = Duration::from_secs(120);
/// What is remembered of reports; they come again.
const REMEMBERED_MAX: usize = 100_000;

/// A chunk that waits.
#[derive(Clone, Copy, Debug)]
struct Want {
    urgency: Urgency,
    len: u32,
    copies: u32,
}

/// A copy on its way.
#[derive(Clone, Copy, Debug)]
struct Running {
    urgency: Urgency,
    len: u32,
    from: ServerId,
    to: ServerId,
    since: Duration,
}

/// A copy to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) chunk: ChunkHandle,
    pub(crate) to: ServerId,
    pub(crate) sources: Vec<ServerId>,
    /// Bytes per second; zero: the target's own share of its disk.
    pub(crate) rate: u64,
}

/// Something small to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// An equal replica counts from now on.
    Join(ChunkHandle, ServerId, [u8; 16]),
    /// A replica does not count any more.
    Drop(ChunkHandle, ServerId, Dropping),
}

/// What a drained server still holds: the last whole look, and the one under way.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    whole: Option<(u64, u64)>,
    now: (u64, u64),
    /// The look under way began before the drain.
    is_partial: bool,
}

/// Numbers since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) done: u64,
    pub(crate) done_bytes: u64,
    pub(crate) kept_bytes: u64,
    pub(crate) failed: u64,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    at: ChunkHandle,
    wants: BTreeMap<ChunkHandle, Want>,
    order: BTreeSet<(Urgency, ChunkHandle)>,
    running: BTreeMap<ChunkHandle, Running>,
    failed: HashMap<ChunkHandle, (Duration, u32)>,
    strays: BTreeMap<(ChunkHandle, ServerId), Option<[u8; 16]>>,
    unjoinable: BTreeSet<(ChunkHandle, ServerId)>,
    join_failures: HashMap<(ChunkHandle, ServerId), u32>,
    asked: HashMap<ChunkHandle, Duration>,
    pub(crate) ejected: Ejected,
    held: BTreeMap<ServerId, Held>,
    balance: Vec<ChunkHandle>,
    speeds: VecDeque<(Duration, u64)>,
    pub(crate) totals: Totals,
}

impl Repairs {
    /// Somebody met trouble reading a sealed chunk.
    pub(crate) fn ask(&mut self, chunk: ChunkHandle, now: Duration) {
        if self.asked.len() < REMEMBERED_MAX {
            self.asked.insert(chunk, now);
        }
    }

    pub(crate) fn is_asked(&self, chunk: ChunkHandle, now: Duration) -> bool {
        self.asked.get(&chunk).is_some_and(|at| now.saturating_sub(*at) < ASKED_FOR)
    }

    /// A server reported a sealed replica, or one that missed the seal, that the log does not count.
    /// `digest`: of its content, if it is sealed and whole.
    pub(crate) fn stray(&mut self, chunk: ChunkHandle, server: ServerId, digest: Option<[u8; 16]>) {
        if self.strays.len() < REMEMBERED_MAX {
            self.strays.insert((chunk, server), digest);
        }
    }

    pub(crate) fn strays_of(&self, chunk: ChunkHandle) -> impl Iterator<Item = (ServerId, Option<[u8; 16]>)> {
        let range = (chunk, ServerId(0))..=(chunk, ServerId(u32::MAX));
        self.strays.range(range).map(|((_, server), digest)| (*server, *digest))
    }

    /// A replica that missed the seal did not fill what it lacks; `is_final`: it never will.
    pub(crate) fn not_joined(&mut self, chunk: ChunkHandle, server: ServerId, is_final: bool) {
        if self.unjoinable.len() >= REMEMBERED_MAX || self.join_failures.len() >= REMEMBERED_MAX {
            return;
        }
        let failures = self.join_failures.entry((chunk, server)).or_default();
        *failures += 1;
        if is_final || *failures >= JOINS_MAX {
            self.join_failures.remove(&(chunk, server));
            self.unjoinable.insert((chunk, server));
        }
    }

    pub(crate) fn is_unjoinable(&self, chunk: ChunkHandle, server: ServerId) -> bool {
        self.unjoinable.contains(&(chunk, server))
    }

    pub(crate) fn is_ejected(&self, server: ServerId) -> bool {
        self.ejected.has(server)
    }

    /// Adds what runs to the servers that it burdens.
    pub(crate) fn burden(&self, servers: &mut Servers) {
        for copy in self.running.values() {
            if let Some(to) = servers.get_mut(&copy.to) {
                to.into += 1;
            }
            if let Some(from) = servers.get_mut(&copy.from) {
                from.out_of += 1;
            }
        }
    }

    /// The chunks to look at now, in order. Ends where the next look begins.
    pub(crate) fn part<'a>(&self, state: &'a State) -> Vec<(ChunkHandle, &'a Chunk)> {
        state.chunks_between(self.at, ChunkHandle(u64::MAX)).take(LOOK_MAX).collect()
    }

    /// Looks at a part of the chunks, with their views; gives what is to be done at once. `is_last`: the
    /// part ends with the last chunk there is.
    pub(crate) fn look(
        &mut self,
        part: &[(ChunkHandle, &Chunk, Option<View>)],
        is_last: bool,
        servers: &Servers,
        now: Duration,
    ) -> Vec<Step> {
        let uneven = uneven(servers);
        let mut steps = vec![];
        let is_partial = self.at != ChunkHandle(0);
        for (server, _) in servers.iter().filter(|(_, seen)| seen.drained) {
            self.held.entry(*server).or_insert(Held { is_partial, ..Held::default() });
        }
        for (handle, row, view) in part {
            self.count_held(row, view.as_ref(), servers);
            let need = view.as_ref().map_or(Need::Nothing, |view| judge::judge(view, servers));
            // One that missed the seal fills what it lacks when it comes: as long as it counts as coming.
            let comes = |server: &ServerId| {
                servers.get(server).is_some_and(|seen| !seen.gone) && !self.is_unjoinable(*handle, *server)
            };
            let waits_for_join = need != Need::Copy(Urgency::Last)
                && row.members.len() < row.wanted as usize
                && row.stale.iter().any(comes);
            match (need, view) {
                (Need::Copy(urgency), Some(view)) if !waits_for_join => {
                    let copies = u32::try_from(judge::copies(view, servers)).unwrap_or(u32::MAX);
                    self.want(*handle, Want { urgency, len: row.len(), copies });
                }
                _ => self.forget(*handle),
            }
            if let Some(view) = view
                && steps.len() < STEPS_MAX
                && !self.running.contains_key(handle)
            {
                steps.extend(self.steps(*handle, row, view, need, servers));
                if need == Need::Nothing && self.balance.len() < BALANCE_MAX && moves(view, uneven.as_ref()) {
                    self.balance.push(*handle);
                }
            }
        }
        self.turn(part, is_last, now);
        steps
    }

    fn steps(&self, handle: ChunkHandle, row: &Chunk, view: &View, need: Need, servers: &Servers) -> Option<Step> {
        let stray = self.strays_of(handle).find(|(server, _)| !row.members.contains(server));
        // The row may have other content than when the replica was reported.
        let stray = stray.map(|(server, digest)| (server, digest.filter(|digest| row.digest() == Some(*digest))));
        match (need, stray) {
            (Need::Copy(_), Some((server, Some(digest)))) => Some(Step::Join(handle, server, digest)),
            (Need::Drop(server, why), _) => Some(Step::Drop(handle, server, why)),
            (Need::Nothing, Some((server, Some(_)))) => Some(Step::Drop(handle, server, Dropping::Surplus)),
            (Need::Nothing, Some((server, None))) => Some(Step::Drop(handle, server, Dropping::Stale)),
            // Missed the seal, and the others are enough.
            (Need::Nothing, None) if judge::copies(view, servers) >= view.wanted => {
                let missed = row.stale.iter().find(|server| servers.get(*server).is_some_and(|seen| seen.alive));
                missed.map(|server| Step::Drop(handle, *server, Dropping::Stale))
            }
            _ => None,
        }
    }

    /// Where the next look begins, and what ends with a whole round.
    fn turn(&mut self, part: &[(ChunkHandle, &Chunk, Option<View>)], is_last: bool, now: Duration) {
        // Chunks that are gone were not looked at: they wait for nothing.
        let last = part.last().map_or(self.at, |(handle, _, _)| *handle);
        let upto = if is_last { ChunkHandle(u64::MAX) } else { last };
        let there: BTreeSet<ChunkHandle> = part.iter().map(|(handle, _, _)| *handle).collect();
        let above = (std::ops::Bound::Excluded(self.at), std::ops::Bound::Included(upto));
        if self.at < upto {
            let gone: Vec<ChunkHandle> =
                self.wants.range(above).map(|(handle, _)| *handle).filter(|handle| !there.contains(handle)).collect();
            gone.into_iter().for_each(|handle| self.forget(handle));
        }
        self.at = if is_last { ChunkHandle(0) } else { last };
        if is_last {
            for held in self.held.values_mut() {
                held.whole = if held.is_partial { held.whole } else { Some(held.now) };
                (held.now, held.is_partial) = ((0, 0), false);
            }
            self.asked.retain(|_, at| now.saturating_sub(*at) < ASKED_FOR);
            self.failed.retain(|handle, _| self.wants.contains_key(handle) || self.running.contains_key(handle));
        }
    }

    fn count_held(&mut self, row: &Chunk, view: Option<&View>, servers: &Servers) {
        for (server, _) in servers.iter().filter(|(_, seen)| seen.drained) {
            let holds = match view {
                Some(view) => judge::is_held_by(view, servers, *server),
                None => row.members.contains(server),
            };
            if holds && let Some(held) = self.held.get_mut(server) {
                held.now = (held.now.0 + 1, held.now.1 + u64::from(row.len()));
            }
        }
    }

    fn want(&mut self, handle: ChunkHandle, want: Want) {
        self.forget(handle);
        self.order.insert((want.urgency, handle));
        self.wants.insert(handle, want);
    }

    fn forget(&mut self, handle: ChunkHandle) {
        if let Some(old) = self.wants.remove(&handle) {
            self.order.remove(&(old.urgency, handle));
        }
    }

    /// Chunks whose views [`Repairs::begin`] may ask for.
    pub(crate) fn candidates(&self) -> Vec<ChunkHandle> {
        let waiting = self.order.iter().take(BEGIN_MAX).map(|(_, chunk)| *chunk);
        waiting.chain(self.balance.iter().copied()).collect()
    }

    /// How many chunks are looked at in one look.
    pub(crate) const LOOK_MAX: usize = LOOK_MAX;

    /// The copies that begin now. `view` gives a chunk as it is now.
    pub(crate) fn begin(
        &mut self,
        view: impl Fn(ChunkHandle) -> Option<(View, u32)>,
        servers: &mut Servers,
        tuning: &Tuning,
        random: u64,
        now: Duration,
    ) -> Vec<Job> {
        let (rate, most) = rate(tuning);
        let mut jobs = vec![];
        if tuning.paused {
            return jobs;
        }
        let first: Vec<(Urgency, ChunkHandle)> = self.order.iter().copied().take(BEGIN_MAX).collect();
        for (urgency, chunk) in first {
            if self.running.len() >= most {
                return jobs;
            }
            let waits = self.failed.get(&chunk).is_some_and(|(not_before, _)| now < *not_before);
            if waits || self.running.contains_key(&chunk) {
                continue;
            }
            let Some((view, len)) = view(chunk) else {
                self.forget(chunk);
                continue;
            };
            if !matches!(judge::judge(&view, servers), Need::Copy(_)) {
                self.forget(chunk);
                continue;
            }
            let Some(way) = judge::way(&view, servers, true) else { continue };
            let random = random.wrapping_add(chunk.0);
            let Some(to) = choose(&way.targets, servers, random) else { continue };
            jobs.push(self.start(chunk, urgency, len, way.sources, to, rate, servers, now));
        }
        if self.order.is_empty() && self.running.is_empty() {
            jobs.extend(self.even_out(view, servers, rate, now));
        }
        jobs
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of one copy")]
    fn start(
        &mut self,
        chunk: ChunkHandle,
        urgency: Urgency,
        len: u32,
        sources: Vec<ServerId>,
        to: ServerId,
        rate: u64,
        servers: &mut Servers,
        since: Duration,
    ) -> Job {
        let from = sources.first().copied().unwrap_or_default();
        self.running.insert(chunk, Running { urgency, len, from, to, since });
        if let Some(seen) = servers.get_mut(&to) {
            seen.into += 1;
        }
        if let Some(seen) = servers.get_mut(&from) {
            seen.out_of += 1;
        }
        Job { chunk, to, sources, rate }
    }

    /// Moves one chunk from the fullest server to an emptier one, when they differ by too much. What it had
    /// too many of then goes as any surplus.
    fn even_out(
        &mut self,
        view: impl Fn(ChunkHandle) -> Option<(View, u32)>,
        servers: &mut Servers,
        rate: u64,
        now: Duration,
    ) -> Option<Job> {
        let uneven = uneven(servers)?;
        while let Some(chunk) = self.balance.pop() {
            let Some((view, len)) = view(chunk) else { continue };
            if !moves(&view, Some(&uneven)) || judge::judge(&view, servers) != Need::Nothing {
                continue;
            }
            // As if the full one were leaving: zones are kept as if it had.
            let mut without = view.clone();
            without.holders.retain(|(server, _)| *server != uneven.0);
            let Some(way) = judge::way(&without, servers, true) else { continue };
            let to = way.targets.iter().copied().filter(|server| uneven.1.contains(server));
            let Some(to) = to.min_by_key(|server| servers.get(server).map_or(u64::MAX, Seen::fill)) else { continue };
            return Some(self.start(chunk, Urgency::Balance, len, way.sources, to, rate, servers, now));
        }
        None
    }

    /// A copy ended: with how many bytes fetched and kept, or not.
    pub(crate) fn ended(&mut self, chunk: ChunkHandle, outcome: Option<(u32, u32)>, now: Duration) {
        let Some(copy) = self.running.remove(&chunk) else { return };
        if let Some((_, kept)) = outcome {
            self.totals.done += 1;
            self.totals.done_bytes += u64::from(copy.len);
            self.totals.kept_bytes += u64::from(kept);
            self.failed.remove(&chunk);
            self.strays.remove(&(chunk, copy.to));
            self.unjoinable.remove(&(chunk, copy.to));
            self.forget(chunk);
            self.speeds.push_back((now, u64::from(copy.len)));
            while self.speeds.front().is_some_and(|(at, _)| now.saturating_sub(*at) > SPEED_OVER) {
                self.speeds.pop_front();
            }
        } else {
            self.totals.failed += 1;
            let tries = self.failed.get(&chunk).map_or(0, |(_, tries)| *tries);
            let pause = (RETRY.0 * (1 << tries.min(10))).min(RETRY.1);
            self.failed.insert(chunk, (now + pause, tries + 1));
        }
    }

    /// A step was taken, or refused for good; or the replica joined by itself.
    pub(crate) fn stepped(&mut self, chunk: ChunkHandle, server: ServerId) {
        self.strays.remove(&(chunk, server));
        self.unjoinable.remove(&(chunk, server));
        self.join_failures.remove(&(chunk, server));
    }

    /// Chunks that wait, by urgency; those without any are left out.
    pub(crate) fn waiting(&self) -> Vec<Waiting> {
        let mut sums: BTreeMap<Urgency, (u64, u64)> = BTreeMap::new();
        for want in self.wants.values() {
            let sum = sums.entry(want.urgency).or_default();
            *sum = (sum.0 + 1, sum.1 + u64::from(want.len));
        }
        sums.into_iter().map(|(urgency, (chunks, bytes))| Waiting { urgency, chunks, bytes }).collect()
    }

    /// The next ones that wait.
    pub(crate) fn next(&self, limit: usize) -> Vec<WaitingChunk> {
        let waiting = self.order.iter().filter(|(_, chunk)| !self.running.contains_key(chunk));
        let item = |(urgency, chunk): &(Urgency, ChunkHandle)| {
            let want = self.wants.get(chunk)?;
            Some(WaitingChunk { chunk: *chunk, urgency: *urgency, len: want.len, copies: want.copies })
        };
        waiting.filter_map(item).take(limit).collect()
    }

    /// What runs.
    pub(crate) fn running(&self, now: Duration) -> Vec<RunningCopy> {
        let item = |(chunk, copy): (&ChunkHandle, &Running)| RunningCopy {
            chunk: *chunk,
            urgency: copy.urgency,
            len: copy.len,
            from: copy.from,
            to: copy.to,
            since_ms: u64::try_from(now.saturating_sub(copy.since).as_millis()).unwrap_or(u64::MAX),
        };
        self.running.iter().map(item).collect()
    }

    /// Seconds until all that waits and runs is done, at the speed of the last copies; `None` without any.
    pub(crate) fn estimate_s(&self, now: Duration) -> Option<u64> {
        let left: u64 = self.wants.values().map(|want| u64::from(want.len)).sum();
        if left == 0 && self.running.is_empty() {
            return Some(0);
        }
        let first = self.speeds.front()?.0;
        let bytes: u64 = self.speeds.iter().map(|(_, bytes)| bytes).sum();
        let over = now.saturating_sub(first).as_secs().max(1);
        Some(left.saturating_mul(over) / bytes.max(1))
    }

    /// How far drains are. `since` gives how long ago each began, in milliseconds.
    pub(crate) fn drains(&mut self, since: impl IntoIterator<Item = (ServerId, u64)>) -> Vec<DrainStatus> {
        let since: BTreeMap<ServerId, u64> = since.into_iter().collect();
        self.held.retain(|server, _| since.contains_key(server));
        let status = |(server, since_ms): (ServerId, u64)| {
            let held = self.held.get(&server).copied().unwrap_or_default();
            let (left, left_bytes) = held.whole.unwrap_or(held.now);
            DrainStatus { server, since_ms, left, left_bytes, is_counted: held.whole.is_some() }
        };
        since.into_iter().map(status).collect()
    }

    /// Begins counting anew what this server holds.
    pub(crate) fn recount(&mut self, server: ServerId) {
        self.held.remove(&server);
    }
}

/// The fullest server, and those that are emptier by too much.
fn uneven(servers: &Servers) -> Option<(ServerId, Vec<ServerId>)> {
    let alive = servers.iter().filter(|(_, seen)| seen.alive && !seen.drained);
    let (full, most) = alive.clone().max_by_key(|(_, seen)| seen.fill())?;
    let is_emptier = |seen: &Seen| seen.free > 0 && most.fill() > seen.fill() + UNEVEN;
    let empty: Vec<ServerId> = alive.filter(|(_, seen)| is_emptier(seen)).map(|(server, _)| *server).collect();
    (!empty.is_empty()).then_some((*full, empty))
}

/// Whether moving this chunk would help.
fn moves(view: &View, uneven: Option<&(ServerId, Vec<ServerId>)>) -> bool {
    let Some((full, empty)) = uneven else { return false };
    let holds = |server: &ServerId| view.holders.iter().any(|(holder, _)| holder == server);
    holds(full) && empty.iter().any(|server| !holds(server))
}

/// Bytes per second of each copy, and how many may run.
fn rate(tuning: &Tuning) -> (u64, usize) {
    let Tuning { server_rate, cluster_rate, .. } = *tuning;
    if cluster_rate == 0 {
        return (server_rate, RUNNING_MAX);
    }
    let each = if server_rate == 0 { (cluster_rate / 4).max(1) } else { server_rate.min(cluster_rate) };
    let most = usize::try_from(cluster_rate / each).unwrap_or(RUNNING_MAX);
    (each, most.clamp(1, RUNNING_MAX))
}

fn choose(targets: &[ServerId], servers: &Servers, random: u64) -> Option<ServerId> {
    let candidate = |server: &ServerId| {
        let seen = servers.get(server)?;
        Some(Candidate { server: *server, zone: String::new(), free: seen.free, recent: u64::from(seen.into) })
    };
    let candidates: Vec<Candidate> = targets.iter().filter_map(candidate).collect();
    placement::choose(&candidates, 1, 1, random)?.first().copied()
}

/// Whether what a dropped replica leaves is enough: it may be condemned and freed.
pub(crate) fn is_missed(view: &View, servers: &Servers, why: Dropping) -> bool {
    let good = view
        .holders
        .iter()
        .filter(|(server, unfit)| !unfit && servers.get(server).is_some_and(|seen| seen.alive && !seen.drained));
    let good = good.count();
    let least = if why == Dropping::Drained { 1 } else { view.wanted };
    good < least || matches!(judge::judge(view, servers), Need::Copy(_))
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
