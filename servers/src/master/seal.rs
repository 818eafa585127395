//! Sealing: which content a chunk keeps for ever once its epoch has ended (replication.md, section 5.2).
//!
//! The decisions only. No I/O and no clock: what members answered and what time it is come in, what
//! must be sent or logged goes out. A member flushes and promises the new epoch before it answers,
//! so nothing more can be acknowledged in the old epoch by the time it counts here.
//!
//! The longest healthy replica wins. An acknowledged operation is durable on every member of its
//! chain, so the longest holds it; what is longer was never acknowledged and may legally survive.
//! The shortest would lose acknowledged bytes as soon as one disk lies about a flush.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wire::member::ReplicaState;
use wire::seal::PrepareOk;
use wire::{DedupEntry, Epoch, Seq, ServerId};

use crate::canary::weakened;

/// Others may still answer for this long after the answers suffice: their replicas then count as holders.
const GATHER: Duration = Duration::from_millis(50);
/// And this long when somebody had entries that could not be verified and nobody has them: a member
/// that is still starting may.
const GATHER_SUSPECT: Duration = Duration::from_secs(10);
/// A member that fills copies at most 32 MiB; one that needs longer joins later.
const FILL: Duration = Duration::from_secs(3);
/// Nobody took the seal for this long: the source died in between. A new round asks everybody again.
const STUCK: Duration = Duration::from_secs(5);

/// What one member answered when it was asked to give up the old epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It promised, and has this.
    Promised(Promise),
    /// It was told the final content before.
    Sealed(Content),
    /// It never durably made the chunk.
    Unknown,
}

/// What a member has, after its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Up to its last complete operation.
    pub content: Content,
    /// Entries it knows to be committed, that is durable on the whole chain.
    pub committed_seq: Seq,
    /// Entries up to here existed, their data could not be verified.
    pub suspect_seq: Seq,
    /// How far its word can be trusted.
    pub standing: Standing,
}

/// Content of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Last entry.
    pub last_seq: Seq,
    /// Bytes.
    pub len: u32,
    /// Digest.
    pub digest: [u8; 16],
}

/// How far a member's word can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Has run since before the epoch began: whatever it acknowledged, it still has.
    Unbroken,
    /// Restarted within the epoch: its disk may have lost what it had called durable.
    Restarted,
    /// Its journal is damaged, or its disk failed a write: its lengths prove nothing.
    Damaged,
}

impl From<&PrepareOk> for Answer {
    fn from(answer: &PrepareOk) -> Self {
        let content = Content { last_seq: answer.last_seq, len: answer.len, digest: answer.digest };
        let standing = match answer.state {
            _ if !answer.healthy => Standing::Damaged,
            ReplicaState::Open => Standing::Unbroken,
            ReplicaState::Rwr => Standing::Restarted,
            ReplicaState::Sealed => return Self::Sealed(content),
            ReplicaState::Condemned => Standing::Damaged,
        };
        Self::Promised(Promise {
            content,
            committed_seq: answer.committed_seq,
            suspect_seq: answer.suspect_seq,
            standing,
        })
    }
}

/// What the answers allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Too few answers to be sure that no acknowledged entry is missing.
    Wait,
    /// This content, which `source` has.
    Take {
        /// The content of the chunk from now on.
        content: Content,
        /// A member that has all of it.
        source: ServerId,
        /// Somebody had more that could not be verified: another member may still come with it.
        doubt: bool,
    },
    /// The chunk was never made everywhere, so it was never given to anybody.
    Abandon,
    /// Two members have different content for the same entries: no length is right.
    Diverged,
}

/// Decides from the answers that have arrived so far; `members` is the chain.
#[must_use]
pub fn decide(members: &[ServerId], answers: &BTreeMap<ServerId, Answer>) -> Decision {
    let in_order = || members.iter().filter_map(|member| Some((*member, answers.get(member)?)));
    if let Some((source, content)) = in_order().find_map(|(member, answer)| match answer {
        Answer::Sealed(content) => Some((member, *content)),
        _ => None,
    }) {
        return Decision::Take { content, source, doubt: false };
    }
    let unknown = in_order().any(|(_, answer)| *answer == Answer::Unknown);
    let promises = || {
        in_order().filter_map(|(member, answer)| match answer {
            Answer::Promised(promise) => Some((member, *promise)),
            _ => None,
        })
    };
    if unknown && answers.len() == members.len() && promises().all(|(_, promise)| promise.content.len == 0) {
        return Decision::Abandon;
    }
    let healthy = || promises().filter(|(_, promise)| promise.standing != Standing::Damaged);
    // One that never lost its memory, or two of which at most one lies, or all there are.
    let unbroken = healthy().any(|(_, promise)| promise.standing == Standing::Unbroken);
    if !unbroken && healthy().count() < members.len().min(2) && !weakened!(AnyAnswerSeals) {
        return Decision::Wait;
    }
    // The first in chain order among equals, so that the same answers always give the same source.
    let mut longest: Option<(ServerId, Promise)> = None;
    for (member, promise) in healthy() {
        let is_better = |longest: &Promise| {
            let (this, best) = (promise.content.last_seq, longest.content.last_seq);
            if weakened!(ShortestWins) { this < best } else { this > best }
        };
        if longest.is_none_or(|(_, longest)| is_better(&longest)) {
            longest = Some((member, promise));
        }
    }
    let Some((source, Promise { content, .. })) = longest else { return Decision::Wait };
    // Somebody saw more committed than anybody still has: a member that holds it is yet to answer.
    if promises().any(|(_, promise)| promise.committed_seq > content.last_seq) {
        return Decision::Wait;
    }
    if healthy().any(|(_, promise)| promise.content.last_seq == content.last_seq && promise.content != content) {
        return Decision::Diverged;
    }
    let doubt = promises().any(|(_, promise)| promise.suspect_seq > content.last_seq);
    Decision::Take { content, source, doubt }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time passed.
    Tick,
    /// A member answered PREPARE.
    Prepared(ServerId, Answer),
    /// A member has promised a higher epoch than this log ever asked for.
    Ahead(Epoch),
    /// The source's digest of as much as this shorter member has.
    Prefix(ServerId, [u8; 16]),
    /// A member has the content; with its dedup table.
    Filled(ServerId, Vec<DedupEntry>),
    /// A member cannot take the content by itself.
    TooFar(ServerId),
    /// A member has more than the longest answer said.
    Longer(ServerId),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send PREPARE, unless one is under way.
    Prepare(ServerId),
    /// Ask `source` for the digest of its first `len` bytes, which `member` has.
    Compare {
        /// Whom.
        source: ServerId,
        /// On whose behalf.
        member: ServerId,
        /// How long the member's content is.
        len: u32,
    },
    /// Send SEAL, unless one is under way.
    Fill {
        /// To whom.
        member: ServerId,
        /// Whom it fills from.
        source: ServerId,
        /// The final content.
        content: Content,
    },
    /// Log Sealed.
    Record {
        /// The final content.
        content: Content,
        /// Who has it, in chain order.
        holders: Vec<ServerId>,
        /// The table for the next chunk.
        dedup: Vec<DedupEntry>,
    },
    /// Log Abandon.
    Abandon,
    /// Begin again with a higher epoch.
    Again,
    /// Leave the chunk as it is, and call the operator.
    Stop(Alarm),
}

/// Why a seal needs an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Members have different content for the same entries.
    Diverged,
    /// A member has more than the longest answer said.
    Longer(ServerId),
    /// A member has promised an epoch this log does not know: the master lost entries.
    LogLost(Epoch),
}

/// One round of sealing one chunk under one promised epoch.
#[derive(Debug)]
pub struct Seal {
    members: Vec<ServerId>,
    answers: BTreeMap<ServerId, Answer>,
    phase: Phase,
    /// The chunk was re-opened: shorter logs are not prefixes of the content, and no answer makes it
    /// one that was never given out.
    overwritten: bool,
}

#[derive(Debug)]
enum Phase {
    /// Collecting promises; since when they suffice.
    Prepare { enough: Option<Duration> },
    /// Checking that shorter members are prefixes of the source.
    Compare { source: ServerId, content: Content, open: BTreeSet<ServerId>, since: Duration },
    /// Members fill and write the seal.
    Fill(Filling),
    /// The last action was given out.
    Over,
}

#[derive(Debug)]
struct Filling {
    source: ServerId,
    content: Content,
    asked: BTreeSet<ServerId>,
    filled: BTreeSet<ServerId>,
    dedup: Vec<DedupEntry>,
    since: Duration,
    first: Option<Duration>,
}

impl Seal {
    /// Begins a round.
    #[must_use]
    pub fn new(members: Vec<ServerId>) -> Self {
        Self { members, answers: BTreeMap::new(), phase: Phase::Prepare { enough: None }, overwritten: false }
    }

    /// Begins a round for a chunk that was re-opened.
    #[must_use]
    pub fn of_reopened(members: Vec<ServerId>) -> Self {
        Self { overwritten: true, ..Self::new(members) }
    }

    /// Takes an event and says what to do. Late and repeated answers change nothing.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Prepared(member, answer) if self.members.contains(&member) => {
                self.answers.entry(member).or_insert(answer);
            }
            Event::Ahead(epoch) => return self.over(Action::Stop(Alarm::LogLost(epoch))),
            Event::Longer(member) if matches!(self.phase, Phase::Fill(_)) => {
                return self.over(Action::Stop(Alarm::Longer(member)));
            }
            Event::Prefix(member, digest) => return self.compared(member, digest, now),
            Event::Filled(member, dedup) => self.filled(member, dedup, now),
            Event::TooFar(member) => {
                if let Phase::Fill(filling) = &mut self.phase {
                    filling.asked.remove(&member);
                }
            }
            Event::Tick | Event::Prepared(..) | Event::Longer(_) => {}
        }
        match &self.phase {
            Phase::Prepare { enough } => self.prepare(*enough, now),
            Phase::Compare { source, content, open, since } => {
                if now >= *since + STUCK {
                    return self.over(Action::Again);
                }
                open.iter().filter_map(|member| compare(*source, *member, *content, &self.answers)).collect()
            }
            Phase::Fill(_) => self.fill(now),
            Phase::Over => vec![],
        }
    }

    fn prepare(&mut self, enough: Option<Duration>, now: Duration) -> Vec<Action> {
        let missing = self.members.iter().filter(|member| !self.answers.contains_key(member));
        let ask = || missing.clone().map(|member| Action::Prepare(*member)).collect();
        let (content, source, doubt) = match decide(&self.members, &self.answers) {
            Decision::Wait => {
                self.phase = Phase::Prepare { enough: None };
                return ask();
            }
            Decision::Abandon if self.overwritten => {
                self.phase = Phase::Prepare { enough: None };
                return ask();
            }
            Decision::Abandon => return self.over(Action::Abandon),
            Decision::Diverged => return self.over(Action::Stop(Alarm::Diverged)),
            Decision::Take { content, source, doubt } => (content, source, doubt),
        };
        let enough = enough.unwrap_or(now);
        let patience = if doubt { GATHER_SUSPECT } else { GATHER };
        if self.answers.len() < self.members.len() && now < enough + patience {
            let actions = ask();
            self.phase = Phase::Prepare { enough: Some(enough) };
            return actions;
        }
        let overwritten = self.overwritten;
        let shorter = |answer: &Answer| {
            !overwritten
                && matches!(answer, Answer::Promised(promise)
                if promise.standing != Standing::Damaged && promise.content.len > 0 && promise.content != content)
        };
        let open = self.answers.iter().filter(|(_, answer)| shorter(answer)).map(|(member, _)| *member).collect();
        self.phase = Phase::Compare { source, content, open, since: now };
        self.proceed(now)
    }

    fn compared(&mut self, member: ServerId, digest: [u8; 16], now: Duration) -> Vec<Action> {
        let Phase::Compare { open, .. } = &mut self.phase else { return vec![] };
        if !open.remove(&member) {
            return vec![];
        }
        if !matches!(self.answers.get(&member), Some(Answer::Promised(promise)) if promise.content.digest == digest) {
            return self.over(Action::Stop(Alarm::Diverged));
        }
        self.proceed(now)
    }

    /// On to filling, once no comparison is open.
    fn proceed(&mut self, now: Duration) -> Vec<Action> {
        let Phase::Compare { source, content, open, .. } = &self.phase else { return vec![] };
        if !open.is_empty() {
            return open.iter().filter_map(|member| compare(*source, *member, *content, &self.answers)).collect();
        }
        let (source, content) = (*source, *content);
        let mut filling = Filling {
            source,
            content,
            asked: BTreeSet::new(),
            filled: BTreeSet::new(),
            dedup: vec![],
            since: now,
            first: None,
        };
        for (member, answer) in &self.answers {
            match answer {
                Answer::Promised(promise) if promise.standing != Standing::Damaged => {
                    filling.asked.insert(*member);
                }
                // It answers a SEAL it has obeyed as it did then, with its dedup table.
                Answer::Sealed(have) if *have == content => {
                    filling.asked.insert(*member);
                }
                _ => {}
            }
        }
        self.phase = Phase::Fill(filling);
        self.fill(now)
    }

    fn filled(&mut self, member: ServerId, dedup: Vec<DedupEntry>, now: Duration) {
        if let Phase::Fill(filling) = &mut self.phase
            && filling.asked.contains(&member)
            && filling.filled.insert(member)
        {
            filling.dedup = dedup;
            filling.first.get_or_insert(now);
        }
    }

    fn fill(&mut self, now: Duration) -> Vec<Action> {
        let Phase::Fill(filling) = &self.phase else { return vec![] };
        let all = filling.filled.len() == filling.asked.len();
        let late = filling.first.is_some_and(|first| now >= first + FILL);
        if !filling.filled.is_empty() && (all || late) {
            let holders = self.members.iter().copied().filter(|member| filling.filled.contains(member)).collect();
            let (content, dedup) = (filling.content, filling.dedup.clone());
            return self.over(Action::Record { content, holders, dedup });
        }
        if filling.filled.is_empty() && now >= filling.since + STUCK {
            return self.over(Action::Again);
        }
        let waiting = filling.asked.difference(&filling.filled);
        let (source, content) = (filling.source, filling.content);
        waiting.map(|member| Action::Fill { member: *member, source, content }).collect()
    }

    fn over(&mut self, action: Action) -> Vec<Action> {
        if matches!(self.phase, Phase::Over) {
            return vec![];
        }
        self.phase = Phase::Over;
        vec![action]
    }
}

fn compare(
    source: ServerId,
    member: ServerId,
    content: Content,
    answers: &BTreeMap<ServerId, Answer>,
) -> Option<Action> {
    let Some(Answer::Promised(promise)) = answers.get(&member) else { return None };
    Some(Action::Compare { source, member, len: promise.content.len.min(content.len) })
}

#[cfg(test)]
mod tests;
