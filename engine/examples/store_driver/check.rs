//! After a restart: is every chunk a state that its operations led to, and not older than what was
//! acknowledged?

use std::collections::BTreeMap;

use engine::runtime::Runtime;
use engine::runtime::shard::Spawn;
use engine::store::{RecoverySummary, ShardSeed, Store, StoreError, View};
use wire::ChunkHandle;
use wire::member::ReplicaState;

use crate::Verdict;
use crate::disk::{open, read_all, start};
use crate::history::{Histories, History, Life, Snap};
use crate::options::Options;

/// A chunk as the store shows it.
pub(crate) struct Seen {
    pub(crate) view: View,
    pub(crate) content: Result<Vec<u8>, (usize, StoreError)>,
}

/// What holds of a chunk.
enum Match {
    /// This state.
    State(usize),
    /// A state that was acknowledged later, or bytes of it, are not there.
    Lost(String),
    /// The store says so itself.
    Reported(String),
    /// Bytes or states that never were.
    Wrong(String),
}

pub(crate) fn check<R: Spawn>(options: &Options) -> Verdict {
    let histories = Histories::read(options.log.as_deref().unwrap(), options.until);
    let (_lock, recovered) = match open::<R>(options) {
        Ok(opened) => opened,
        Err(error) if options.lenient => return Verdict::Kept(format!("reported: does not open: {error}")),
        Err(error) => return Verdict::Broken(format!("LOST: does not open: {error}")),
    };
    let seen = look::<R>(recovered.seeds);
    let beyond = match verdict(&histories, &seen, &recovered.summary, options.lenient) {
        Ok(beyond) => beyond,
        Err(verdict) => return verdict,
    };
    Verdict::Kept(format!(
        "ok: {} chunks, {} acknowledgements, {beyond} states beyond them, {}",
        seen.len(),
        histories.acks,
        brief(&recovered.summary)
    ))
}

fn brief(summary: &RecoverySummary) -> String {
    format!(
        "{} records, {} torn ends, {} suspects, {} healed",
        summary.records_replayed, summary.torn_ends, summary.suspects, summary.healed
    )
}

/// Starts every shard and looks at every chunk.
fn look<R: Spawn>(seeds: Vec<ShardSeed>) -> BTreeMap<u64, Seen> {
    let mut all = BTreeMap::new();
    for (index, seed) in (0..).zip(seeds) {
        let seen = start::<R, _, _>(index, move |rt| async move {
            let store = Store::start(rt.clone(), seed).await.unwrap();
            see(&store).await
        })();
        all.extend(seen);
    }
    all
}

/// Every chunk of a store.
pub(crate) async fn see<R: Runtime>(store: &Store<R>) -> BTreeMap<u64, Seen> {
    let mut seen = BTreeMap::new();
    for chunk in store.chunks() {
        let Some(view) = store.view(chunk) else { continue };
        let content =
            if view.state == ReplicaState::Condemned { Ok(Vec::new()) } else { read_all(store, chunk.0).await };
        seen.insert(chunk.0, Seen { view, content });
    }
    seen
}

/// How many chunks are in a state beyond the last acknowledged one; or what is wrong.
fn verdict(
    histories: &Histories,
    seen: &BTreeMap<u64, Seen>,
    summary: &RecoverySummary,
    lenient: bool,
) -> Result<usize, Verdict> {
    if let Some(chunk) = seen.keys().find(|chunk| !histories.chunks.contains_key(chunk)) {
        return Err(Verdict::Broken(format!("WRONG: chunk {chunk} was never created")));
    }
    let mut beyond = 0;
    let mut reports = Vec::new();
    for (chunk, history) in &histories.chunks {
        match compare(*chunk, history, seen.get(chunk), summary) {
            Match::State(number) => beyond += usize::from(number > history.acked),
            Match::Wrong(what) => return Err(Verdict::Broken(format!("WRONG: {what}"))),
            Match::Reported(what) if lenient => reports.push(what),
            Match::Lost(what) | Match::Reported(what) => return Err(Verdict::Broken(format!("LOST: {what}"))),
        }
    }
    match reports.into_iter().next() {
        Some(what) => Err(Verdict::Kept(format!("reported: {what}"))),
        None => Ok(beyond),
    }
}

/// As [`compare`], for who goes on from there: the number of the state, or what is wrong.
pub(crate) fn found(
    chunk: u64,
    history: &History,
    seen: Option<&Seen>,
    summary: &RecoverySummary,
) -> Result<usize, String> {
    match compare(chunk, history, seen, summary) {
        Match::State(number) => Ok(number),
        Match::Lost(what) | Match::Reported(what) | Match::Wrong(what) => Err(what),
    }
}

fn compare(chunk: u64, history: &History, seen: Option<&Seen>, summary: &RecoverySummary) -> Match {
    let oldest = history.acked - history.first;
    let may_be = &history.snaps[oldest..];
    let Some(seen) = seen else {
        let absent = may_be.iter().position(|snap| snap.life == Life::Absent);
        return match absent {
            Some(at) => Match::State(history.acked + at),
            None if summary.lost_slots + summary.damaged_journals > 0 => {
                Match::Reported(format!("chunk {chunk}: a slot or a part of the journal is lost"))
            }
            None => Match::Lost(format!("chunk {chunk} is not there, acknowledged was {}", brief_snap(&may_be[0]))),
        };
    };
    let content = match &seen.content {
        Ok(content) => content,
        Err((at, error)) => return Match::Reported(format!("chunk {chunk} at byte {at}: {error}")),
    };
    let view = &seen.view;
    let whole = may_be.iter().enumerate().position(|(at, snap)| {
        let promised = may_be[at..].iter().any(|later| later.promised == view.promised.0);
        promised && is(view, snap) && (snap.life == Life::Condemned || *content == snap.content())
    });
    if let Some(at) = whole {
        return Match::State(history.acked + at);
    }
    let newest = &history.snaps[history.snaps.len() - 1];
    let what = format!(
        "chunk {chunk}: acknowledged {}, found {:?} epoch {} last {} len {}{}",
        brief_snap(&may_be[0]),
        view.state,
        view.epoch,
        view.last_seq.0,
        view.durable_len,
        if view.suspect_seq.0 > 0 { format!(", suspect up to {}", view.suspect_seq.0) } else { String::new() }
    );
    if view.state != ReplicaState::Condemned
        && newest.life != Life::Absent
        && !history.snaps.iter().any(|snap| snap.content().starts_with(content))
    {
        return Match::Wrong(format!("{what}; its bytes never were"));
    }
    if view.damaged || summary.damaged_journals > 0 {
        return Match::Reported(format!("{what}, damaged"));
    }
    Match::Lost(what)
}

/// Whether a store that has restarted shows this state.
fn is(view: &View, snap: &Snap) -> bool {
    let state = match snap.life {
        Life::Absent => return false,
        Life::Open => ReplicaState::Rwr,
        Life::Sealed => ReplicaState::Sealed,
        Life::Condemned => ReplicaState::Condemned,
    };
    !view.damaged
        && (view.state, view.epoch.0, view.last_seq.0, view.durable_len)
            == (state, snap.epoch, snap.last_seq, snap.len())
        && (view.closed, view.filled, view.fixed) == (snap.closed, snap.filled, snap.fixed)
}

fn brief_snap(snap: &Snap) -> String {
    format!("{:?} epoch {} last {} len {}", snap.life, snap.epoch, snap.last_seq, snap.len())
}

/// A chunk that is known to a shard.
pub(crate) fn is_of(chunk: u64, shards: u32, shard: u32) -> bool {
    ChunkHandle(chunk).shard(shards) == shard
}
