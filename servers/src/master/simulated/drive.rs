//! Opening, sealing, confirming and joining: what the decisions ask for, sent over simulated connections.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use wire::chain::Create;
use wire::heartbeat::Liveness;
use wire::member::{Member, ReplicaState};
use wire::seal::{Confirm, Digest, Prepare, Seal as SealRequest};
use wire::{ChunkHandle, Epoch, Fault, InodeId, Kind, Reason, ServerId};

use super::{REPLICAS, SimMaster};
use crate::canary::sometimes;
use crate::master::entry::{Answer as Applied, Change};
use crate::master::placement;
use crate::master::seal::{Action, Answer as Promised, Event, Seal};
use crate::master::state::{Phase, Place};
use crate::simulation::talk::{Answer, within};

const CREATE_TIMEOUT: Duration = Duration::from_millis(500);
const ATTEMPTS: u32 = 4;
const RESEND: Duration = Duration::from_millis(200);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const FILL_TIMEOUT: Duration = Duration::from_secs(30);
const ROUND_PAUSE: Duration = Duration::from_millis(500);
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
const CONFIRM_PAUSE: Duration = Duration::from_secs(1);
const JOIN_PAUSE: Duration = Duration::from_secs(10);

/// An opening under way, and its outcome for all who wait.
#[derive(Default)]
pub(super) struct Opening {
    outcome: RefCell<Option<Answer<()>>>,
    done: Notify,
}

enum Outcome {
    Log(Change),
    Again,
    Stop,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Prepare(ServerId),
    Compare(ServerId),
    Fill(ServerId),
}

impl SimMaster {
    pub(super) async fn open_tail(self: &Rc<Self>, file: InodeId) -> Answer<()> {
        let opening = {
            let mut openings = self.opening.borrow_mut();
            let known = openings.get(&file).map(Rc::clone);
            known.unwrap_or_else(|| {
                let opening = Rc::<Opening>::default();
                openings.insert(file, Rc::clone(&opening));
                let (master, mine) = (Rc::clone(self), Rc::clone(&opening));
                self.rt.spawn(async move {
                    let outcome = master.open(file).await;
                    master.opening.borrow_mut().remove(&file);
                    *mine.outcome.borrow_mut() = Some(outcome);
                    mine.done.notify_waiters();
                    master.changed.notify_waiters();
                });
                opening
            })
        };
        loop {
            let done = opening.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if let Some(outcome) = &*opening.outcome.borrow() {
                return outcome.clone();
            }
            done.await;
        }
    }

    async fn open(self: &Rc<Self>, file: InodeId) -> Answer<()> {
        let mut avoid = BTreeSet::new();
        for attempt in 0..ATTEMPTS {
            let timeout = CREATE_TIMEOUT * 2_u32.pow(attempt);
            match self.ask(|state| state.tail(file)).await {
                Some(tail) if tail.chunk.phase != Phase::Open => return Ok(()),
                Some(tail) if self.soft.borrow().ready.contains(&tail.handle) => return Ok(()),
                Some(tail) => {
                    sometimes!("an open chunk of the master's earlier life");
                    if self.create_everywhere(tail.handle, timeout).await.is_err() {
                        self.start_seal(tail.handle);
                    }
                    return Ok(());
                }
                None => {}
            }
            let chunk = self.place_and_log(file, &mut avoid).await?;
            let Err(failed) = self.create_everywhere(chunk, timeout).await else { return Ok(()) };
            sometimes!("a chunk is abandoned");
            self.submit(Change::Abandon { chunk }).await?;
            avoid.extend(failed);
        }
        Err(Fault::new(Kind::Unavailable, "no chain could be made"))
    }

    async fn place_and_log(self: &Rc<Self>, file: InodeId, avoid: &mut BTreeSet<ServerId>) -> Answer<ChunkHandle> {
        let now = self.rt.now();
        let mut candidates = self.soft.borrow_mut().candidates(&self.state.borrow(), now);
        let (wanted, least) = REPLICAS;
        if candidates.iter().filter(|candidate| !avoid.contains(&candidate.server)).count() < least {
            avoid.clear();
        }
        candidates.retain(|candidate| !avoid.contains(&candidate.server));
        let seed = self.rng.borrow_mut().next();
        let members = placement::choose(&candidates, wanted, least, seed)
            .ok_or_else(|| Fault::new(Kind::Unavailable, "no enough servers"))?;
        if members.len() < wanted {
            sometimes!("a chain of two");
        }
        self.soft.borrow_mut().placed(&members, now);
        match self.submit(Change::OpenChunk { file, members }).await? {
            Applied::Chunk(chunk) => Ok(chunk),
            other => unreachable!("opening a chunk answers with its handle, not {other:?}"),
        }
    }

    async fn create_everywhere(self: &Rc<Self>, handle: ChunkHandle, timeout: Duration) -> Result<(), Vec<ServerId>> {
        let create = self.look(|state| {
            let Place { chunk, .. } = state.place_of(handle)?;
            Some(Create {
                term: self.term,
                chunk: handle,
                epoch: chunk.epoch,
                members: crate::master::shared::members(state, &chunk.members),
                my_position: 0,
                prev: chunk.prev,
                file: chunk.file,
                dedup: state.inherited(chunk.file),
            })
        });
        let Some(create) = create else { return Err(vec![]) };
        let calls = create.members.iter().zip(0_u8..).map(|(member, my_position)| {
            let create = Create { my_position, ..create.clone() };
            async move { (member.server, self.call(member, &create, timeout).await) }
        });
        let outcomes = futures_util::future::join_all(calls).await;
        let failed: Vec<_> = outcomes.into_iter().filter(|(_, it)| it.is_err()).map(|(server, _)| server).collect();
        if !failed.is_empty() {
            return Err(failed);
        }
        self.soft.borrow_mut().ready.insert(handle);
        Ok(())
    }

    /// Begins to seal a chunk, unless it is being sealed or is sealed.
    pub(crate) fn start_seal(self: &Rc<Self>, chunk: ChunkHandle) {
        if !self.sealing.borrow_mut().insert(chunk) {
            return;
        }
        let master = Rc::clone(self);
        self.rt.spawn(async move {
            let is_stopped = master.seal(chunk).await.unwrap_or(false);
            if !is_stopped {
                master.sealing.borrow_mut().remove(&chunk);
            }
        });
    }

    /// True: an operator must look.
    async fn seal(self: &Rc<Self>, chunk: ChunkHandle) -> Answer<bool> {
        loop {
            let asked = self.look(|state| {
                let row = state.chunk(chunk).filter(|row| !matches!(row.phase, Phase::Sealed { .. }))?;
                if matches!(row.phase, Phase::Sealing(_)) {
                    sometimes!("a chunk is asked for again with a higher epoch");
                }
                Some((row.epoch_max().next(), crate::master::shared::members(state, &row.members)))
            });
            let Some((epoch, members)) = asked else { return Ok(false) };
            self.soft.borrow_mut().ready.remove(&chunk);
            self.submit(Change::SealStart { chunk, epoch }).await?;
            match self.round(chunk, epoch, members).await {
                Outcome::Log(change) => {
                    self.submit(change).await?;
                    self.seals.set(self.seals.get() + 1);
                    return Ok(false);
                }
                Outcome::Again => self.rt.sleep(ROUND_PAUSE).await,
                Outcome::Stop => {
                    self.soft.borrow_mut().alarms += 1;
                    return Ok(true);
                }
            }
        }
    }

    async fn round(self: &Rc<Self>, chunk: ChunkHandle, epoch: Epoch, members: Vec<Member>) -> Outcome {
        let (sender, mut events) = mpsc::channel(64);
        let mut seal = Seal::new(members.iter().map(|member| member.server).collect());
        let members = Rc::new(members);
        let mut under_way = BTreeSet::new();
        let mut event = Event::Tick;
        loop {
            for action in seal.step(event, self.rt.now()) {
                let call = match action {
                    Action::Prepare(member) => Call::Prepare(member),
                    Action::Compare { member, .. } => Call::Compare(member),
                    Action::Fill { member, .. } => Call::Fill(member),
                    Action::Record { content, holders, dedup } => {
                        match holders.len() {
                            1 => sometimes!("sealed by one"),
                            2 => sometimes!("sealed by two"),
                            _ => sometimes!("sealed by three"),
                        }
                        let (len, last_seq, digest) = (content.len, content.last_seq, content.digest);
                        return Outcome::Log(Change::Sealed { chunk, epoch, len, last_seq, digest, holders, dedup });
                    }
                    Action::Abandon => return Outcome::Log(Change::Abandon { chunk }),
                    Action::Again => return Outcome::Again,
                    Action::Stop(_) => return Outcome::Stop,
                };
                if under_way.insert(call) {
                    let (master, members, sender) = (Rc::clone(self), Rc::clone(&members), sender.clone());
                    self.rt.spawn(async move {
                        let event = master.act(chunk, epoch, &members, action).await;
                        // The round may be over.
                        drop(sender.send((call, event)).await);
                    });
                }
            }
            event = match within(&self.rt, RESEND, events.recv()).await {
                Some(Some((call, event))) => {
                    under_way.remove(&call);
                    match event {
                        Some(event) => event,
                        None => {
                            self.rt.sleep(RESEND).await;
                            Event::Tick
                        }
                    }
                }
                _ => Event::Tick,
            };
        }
    }

    async fn act(&self, chunk: ChunkHandle, epoch: Epoch, members: &[Member], action: Action) -> Option<Event> {
        let member = |server: ServerId| members.iter().find(|member| member.server == server);
        let term = self.term;
        match action {
            Action::Prepare(server) => {
                match self.call(member(server)?, &Prepare { term, chunk, epoch }, CALL_TIMEOUT).await {
                    Ok(answer) => {
                        if answer.state == ReplicaState::Rwr {
                            sometimes!("a member that restarted promises");
                        }
                        if !answer.healthy {
                            sometimes!("a member that is not healthy promises");
                        }
                        if answer.suspect_seq > answer.last_seq {
                            sometimes!("a member had entries that cannot be verified");
                        }
                        Some(Event::Prepared(server, Promised::from(&answer)))
                    }
                    Err(fault) if fault.reason == Reason::UnknownChunk => {
                        sometimes!("a member does not know the chunk");
                        Some(Event::Prepared(server, Promised::Unknown))
                    }
                    Err(fault) if fault.reason == Reason::StaleEpoch && fault.detail > u64::from(epoch.0) => {
                        u32::try_from(fault.detail).ok().map(|promised| Event::Ahead(Epoch(promised)))
                    }
                    Err(_) => None,
                }
            }
            Action::Compare { source, member: of, len } => {
                let answer = self.call(member(source)?, &Digest { chunk, len }, CALL_TIMEOUT).await.ok()?;
                sometimes!("a shorter member is compared");
                (answer.len == len).then_some(Event::Prefix(of, answer.digest))
            }
            Action::Fill { member: of, source, content } => {
                let (len, last_seq, digest) = (content.len, content.last_seq, content.digest);
                let source = member(source)?.clone();
                let request = SealRequest { term, chunk, epoch, last_seq, len, digest, source };
                match self.call(member(of)?, &request, FILL_TIMEOUT).await {
                    Ok(answer) => Some(Event::Filled(of, answer.dedup)),
                    Err(fault) if fault.reason == Reason::TooFar => Some(Event::TooFar(of)),
                    Err(fault) if fault.reason == Reason::Longer => Some(Event::Longer(of)),
                    Err(_) => None,
                }
            }
            _ => None,
        }
    }

    pub(super) fn confirm_all(self: &Rc<Self>, chunk: ChunkHandle) {
        let holders = self.look(|state| state.chunk(chunk).map(|row| row.members.clone()).unwrap_or_default());
        for server in holders {
            self.confirm(chunk, server);
        }
    }

    pub(super) fn confirm(self: &Rc<Self>, chunk: ChunkHandle, server: ServerId) {
        if !self.joining.borrow_mut().insert((chunk, server)) {
            return;
        }
        let master = Rc::clone(self);
        self.rt.spawn(async move {
            while let Some((confirm, _, member, _)) = master.sealed(chunk, server)
                && let Err(fault) = master.call(&member, &confirm, CONFIRM_TIMEOUT).await
            {
                if fault.kind != Kind::Unknown {
                    sometimes!("CONFIRM is refused");
                    break;
                }
                sometimes!("CONFIRM is lost");
                if master.soft.borrow().liveness(server, master.rt.now()) == Liveness::Dead {
                    break;
                }
                master.rt.sleep(CONFIRM_PAUSE).await;
            }
            master.joining.borrow_mut().remove(&(chunk, server));
        });
    }

    pub(super) fn join(self: &Rc<Self>, chunk: ChunkHandle, server: ServerId) {
        let now = self.rt.now();
        {
            let mut soft = self.soft.borrow_mut();
            let recent = soft.rejoined.get(&(chunk, server)).is_some_and(|at| now < *at + JOIN_PAUSE);
            if recent || !soft.may_delete() || !self.joining.borrow_mut().insert((chunk, server)) {
                return;
            }
            soft.rejoined.insert((chunk, server), now);
        }
        let master = Rc::clone(self);
        self.rt.spawn(async move {
            if master.bring_in_line(chunk, server).await.is_ok() {
                sometimes!("a stale replica joins again");
            }
            master.joining.borrow_mut().remove(&(chunk, server));
        });
    }

    async fn bring_in_line(self: &Rc<Self>, chunk: ChunkHandle, server: ServerId) -> Answer<()> {
        let gone = || Fault::new(Kind::Unavailable, "the chunk or the server is gone");
        let (confirm, last_seq, member, source) = self.sealed(chunk, server).ok_or_else(gone)?;
        let source = source.ok_or_else(gone)?;
        let Confirm { term, epoch, len, digest, .. } = confirm;
        let has = self.call(&member, &Prepare { term, chunk, epoch }, CONFIRM_TIMEOUT).await?;
        if has.state != ReplicaState::Sealed {
            let seal = SealRequest { term, chunk, epoch, last_seq, len, digest, source };
            self.call(&member, &seal, FILL_TIMEOUT).await?;
            self.call(&member, &confirm, CONFIRM_TIMEOUT).await?;
        } else if (has.len, has.digest) != (len, digest) {
            return Err(gone());
        }
        self.submit(Change::AddReplica { chunk, server, digest }).await.map(drop)
    }

    fn sealed(&self, chunk: ChunkHandle, server: ServerId) -> Option<(Confirm, wire::Seq, Member, Option<Member>)> {
        self.look(|state| {
            let row = state.chunk(chunk)?;
            let Phase::Sealed { len, last_seq, digest } = row.phase else { return None };
            let source = row.members.iter().find(|holder| **holder != server);
            let source = source.and_then(|source| crate::master::shared::member(state, *source));
            let confirm = Confirm { term: self.term, chunk, epoch: row.epoch, len, digest };
            Some((confirm, last_seq, crate::master::shared::member(state, server)?, source))
        })
    }
}
