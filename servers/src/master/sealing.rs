//! Drives [`super::seal`]: one task per chunk sends what the decision asks for, feeds answers back,
//! and logs the result. Everything is logged before it leaves the master.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, info, warn};
use wire::member::Member;
use wire::seal::{Digest, Prepare, Seal as SealRequest};
use wire::{ChunkHandle, Epoch, Fault, Reason, ServerId};

use super::entry::Change;
use super::peers::CallError;
use super::seal::{Action, Alarm, Answer, Event, Seal};
use super::shared::{Master, lock, members};
use super::state::Phase;
use crate::clock;

/// PREPARE and SEAL are sent again when nothing has come for this long.
const RESEND: Duration = Duration::from_millis(200);
/// One PREPARE or DIGEST: a flush, at worst behind a full journal.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// One SEAL: may copy 32 MiB first.
const FILL_TIMEOUT: Duration = Duration::from_secs(30);
/// Between rounds of one chunk.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// How a round ended.
enum Outcome {
    Log(Change),
    Again,
    Stop(Alarm),
}

/// What is under way to a member: no second one beside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    Prepare(ServerId),
    Compare(ServerId),
    Fill(ServerId),
}

/// One round's surroundings.
struct Round {
    master: Arc<Master>,
    chunk: ChunkHandle,
    epoch: Epoch,
    members: Vec<Member>,
    events: mpsc::Sender<(Call, Option<Event>)>,
}

impl Master {
    /// Begins to seal a chunk, unless it is being sealed or is sealed. Returns at once.
    pub(super) fn start_seal(self: &Arc<Self>, chunk: ChunkHandle) {
        if !lock(&self.sealing).insert(chunk) {
            return;
        }
        let master = Arc::clone(self);
        self.spawn(async move {
            if let Err(fault) = master.seal(chunk).await {
                info!(%chunk, %fault, "seal ends");
            }
        });
    }

    async fn seal(self: &Arc<Self>, chunk: ChunkHandle) -> Result<(), Fault> {
        // Leaves the list when it ends, except by an alarm: that chunk is not tried again by itself.
        let mut listed = Listed { master: self, chunk, keep: false };
        loop {
            let asked = self.core.look(|state| {
                let row = state.chunk(chunk).filter(|row| !matches!(row.phase, Phase::Sealed { .. }))?;
                Some((row.epoch_max().next(), members(state, &row.members), row.fixed.is_some()))
            });
            let Some((epoch, members, overwritten)) = asked else { return Ok(()) };
            self.soft().ready.remove(&chunk);
            self.core.submit(Change::SealStart { chunk, epoch }).await?;
            self.counters.seal_rounds.add(1);
            match self.round(chunk, epoch, members, overwritten).await {
                Outcome::Log(change) => {
                    self.core.submit(change).await?;
                    return Ok(());
                }
                Outcome::Again => tokio::time::sleep(ROUND_PAUSE).await,
                Outcome::Stop(alarm) => {
                    error!(%chunk, %epoch, ?alarm, "chunk cannot be sealed: an operator must look at its replicas");
                    let mut soft = self.soft();
                    soft.alarms += 1;
                    soft.log_lost |= matches!(alarm, Alarm::LogLost(_));
                    listed.keep = true;
                    return Ok(());
                }
            }
        }
    }

    async fn round(
        self: &Arc<Self>,
        chunk: ChunkHandle,
        epoch: Epoch,
        members: Vec<Member>,
        overwritten: bool,
    ) -> Outcome {
        let (sender, mut events) = mpsc::channel(64);
        let servers = members.iter().map(|member| member.server).collect();
        let mut seal = if overwritten { Seal::of_reopened(servers) } else { Seal::new(servers) };
        let round = Arc::new(Round { master: Arc::clone(self), chunk, epoch, members, events: sender });
        let mut under_way = HashSet::new();
        let mut event = Event::Tick;
        loop {
            for action in seal.step(event, clock::now()) {
                let call = match action {
                    Action::Prepare(member) => Call::Prepare(member),
                    Action::Compare { member, .. } => Call::Compare(member),
                    Action::Fill { member, .. } => Call::Fill(member),
                    Action::Record { content, holders, dedup } => {
                        let (len, last_seq, digest) = (content.len, content.last_seq, content.digest);
                        return Outcome::Log(Change::Sealed { chunk, epoch, len, last_seq, digest, holders, dedup });
                    }
                    Action::Abandon => return Outcome::Log(Change::Abandon { chunk }),
                    Action::Again => return Outcome::Again,
                    Action::Stop(alarm) => return Outcome::Stop(alarm),
                };
                if under_way.insert(call) {
                    let round = Arc::clone(&round);
                    self.spawn(async move { round.send(call, action).await });
                }
            }
            event = match tokio::time::timeout(RESEND, events.recv()).await {
                Ok(Some((call, event))) => {
                    under_way.remove(&call);
                    // What failed is asked again at the next tick, not at once.
                    match event {
                        Some(event) => event,
                        None => continue_after(RESEND).await,
                    }
                }
                _ => Event::Tick,
            };
        }
    }
}

async fn continue_after(pause: Duration) -> Event {
    tokio::time::sleep(pause).await;
    Event::Tick
}

impl Round {
    async fn send(&self, call: Call, action: Action) {
        let event = self.ask(action).await;
        // The round may be over.
        let _ = self.events.send((call, event)).await;
    }

    async fn ask(&self, action: Action) -> Option<Event> {
        let (chunk, epoch, term) = (self.chunk, self.epoch, self.master.term());
        let peers = &self.master.peers;
        match action {
            Action::Prepare(server) => {
                let request = Prepare { term, chunk, epoch };
                match peers.call(self.member(server)?, chunk, &request, CALL_TIMEOUT).await {
                    Ok(answer) => Some(Event::Prepared(server, Answer::from(&answer))),
                    Err(CallError::Refused(fault)) => self.refused(server, &fault),
                    Err(error) => self.failed(server, "PREPARE", &error),
                }
            }
            Action::Compare { source, member, len } => {
                match peers.call(self.member(source)?, chunk, &Digest { chunk, len }, CALL_TIMEOUT).await {
                    Ok(answer) if answer.len == len => Some(Event::Prefix(member, answer.digest)),
                    Ok(answer) => {
                        warn!(%chunk, %source, len, got = answer.len, "digest of another length");
                        None
                    }
                    Err(error) => self.failed(source, "DIGEST", &error),
                }
            }
            Action::Fill { member, source, content } => {
                let (len, last_seq, digest) = (content.len, content.last_seq, content.digest);
                let source = self.member(source)?.clone();
                let request = SealRequest { term, chunk, epoch, last_seq, len, digest, source };
                match peers.call(self.member(member)?, chunk, &request, FILL_TIMEOUT).await {
                    Ok(answer) => Some(Event::Filled(member, answer.dedup)),
                    Err(CallError::Refused(fault)) if fault.reason == Reason::TooFar => Some(Event::TooFar(member)),
                    Err(CallError::Refused(fault)) if fault.reason == Reason::Longer => Some(Event::Longer(member)),
                    Err(error) => self.failed(member, "SEAL", &error),
                }
            }
            _ => None,
        }
    }

    fn refused(&self, server: ServerId, fault: &Fault) -> Option<Event> {
        match fault.reason {
            Reason::UnknownChunk => Some(Event::Prepared(server, Answer::Unknown)),
            // The detail is what it has promised: never more than this log has asked for.
            Reason::StaleEpoch if fault.detail > u64::from(self.epoch.0) => {
                u32::try_from(fault.detail).ok().map(|promised| Event::Ahead(Epoch(promised)))
            }
            _ => self.failed(server, "PREPARE", fault),
        }
    }

    fn failed(&self, server: ServerId, what: &str, error: &dyn std::fmt::Display) -> Option<Event> {
        tracing::debug!(chunk = %self.chunk, epoch = %self.epoch, %server, %error, "{what} failed");
        None
    }

    fn member(&self, server: ServerId) -> Option<&Member> {
        self.members.iter().find(|member| member.server == server)
    }
}

/// Takes a chunk off the list of those being sealed.
struct Listed<'a> {
    master: &'a Master,
    chunk: ChunkHandle,
    keep: bool,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        if !self.keep {
            lock(&self.master.sealing).remove(&self.chunk);
        }
    }
}
