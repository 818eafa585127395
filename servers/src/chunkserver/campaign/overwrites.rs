//! A chunk that is written in place under fire: re-opened, broken, sealed, re-opened again. Writers own
//! slots that share blocks; in the end every holder has in every slot what was acknowledged last. A
//! reader asks every member meanwhile: nothing older than what was acknowledged or seen before.

use wire::append::LAST;
use wire::chain::Reopen;
use wire::write::Write;

use super::*;

/// No multiple of a block: slots of different writers share blocks.
const SLOT: u32 = 3000;
const SLOTS_EACH: u32 = 6;
const LEN: u32 = SLOT * SLOTS_EACH * CLIENTS as u32;

/// Which version of each slot was acknowledged last; and is being written at most.
#[derive(Default)]
struct Book {
    acked: BTreeMap<u32, u64>,
    newest: BTreeMap<u32, u64>,
}

/// A slot's bytes say which version they are.
fn version(slot: u32, op: u64) -> Vec<u8> {
    let mut out = op.to_le_bytes().to_vec();
    out.extend((8..SLOT).map(|at| (u64::from(at ^ slot) ^ op.wrapping_mul(31)) as u8));
    out
}

/// The version that these bytes are, whole.
fn version_of(slot: u32, bytes: &[u8]) -> u64 {
    let op = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == version(slot, op), "slot {slot} is a mix of versions");
    op
}

impl Cluster {
    /// A chunk with version 0 of every slot, sealed, on at least two members.
    async fn prepare_slots(&self, rng: &mut Rng) {
        self.open(ChunkHandle(1), Vec::new(), rng).await;
        let chunk = self.chunks.borrow().last().unwrap().clone();
        let content: Vec<u8> = (0..LEN / SLOT).flat_map(|slot| version(slot, 0)).collect();
        let append = Append {
            chunk: chunk.handle,
            epoch: Epoch(1),
            flags: LAST,
            id: OpId { stream: StreamId([9; 16]), op: 1 },
            first_unacked: 1,
            op_len: LEN,
            part: 0,
            parts: 1,
            crcs: Vec::new(),
        };
        let mut talk = Talk::dial(&self.rt, chunk.members[0], Role::Client).await.unwrap();
        talk.append(&append, &content).await.unwrap();
        while self.finished.borrow().is_none() {
            self.trouble.notified().await;
        }
        let finished = self.finished.borrow_mut().take().unwrap();
        self.is_open.set(false);
        self.record_planned(&finished);
    }

    /// The master: re-opens, waits for trouble, seals; until everybody has written.
    async fn rule_reopened(&self, idle: bool) {
        while self.clients_left.get() > 0 {
            if self.reopen().await {
                self.is_trouble.set(false);
                self.is_open.set(true);
                while !self.is_trouble.get() && self.clients_left.get() > 0 {
                    self.trouble.notified().await;
                }
                self.is_open.set(false);
            }
            self.seal_reopened().await;
            self.seals.set(self.seals.get() + 1);
            if idle {
                self.rt.sleep(CALL).await;
            }
        }
    }

    async fn reopen(&self) -> bool {
        let (handle, old) = {
            let mut chunks = self.chunks.borrow_mut();
            let chunk = chunks.last_mut().unwrap();
            let sealed = chunk.sealed.take().unwrap();
            (chunk.epoch, chunk.members) = (chunk.epoch.max(sealed.epoch.0) + 1, sealed.holders.clone());
            (chunk.handle, sealed)
        };
        let epoch = Epoch(self.chunks.borrow().last().unwrap().epoch);
        let Sealed { epoch: sealed_in, len, digest, holders } = old;
        let members: Vec<Member> = holders.iter().map(|node| member(*node)).collect();
        let mut opened = 0;
        for (my_position, node) in (0..).zip(&holders) {
            let confirm = Confirm { term: Term(1), chunk: handle, epoch: sealed_in, len, digest };
            let members = members.clone();
            let reopen = Reopen { term: Term(1), chunk: handle, epoch, members, my_position, len, digest };
            let confirmed = self.command(*node, &confirm).await.is_ok();
            opened += usize::from(confirmed && self.command(*node, &reopen).await.is_ok());
        }
        opened == holders.len()
    }

    async fn seal_reopened(&self) {
        loop {
            let (chunk, epoch, members) = {
                let mut chunks = self.chunks.borrow_mut();
                let chunk = chunks.last_mut().unwrap();
                chunk.epoch += 1;
                (chunk.handle, Epoch(chunk.epoch), chunk.members.clone())
            };
            let answers = self.promises(chunk, epoch, &members).await;
            // Somebody has not been re-opened: then nobody has been written to.
            let sealed = answers.iter().find(|(_, it)| it.state == ReplicaState::Sealed).map(|(node, _)| *node);
            let Some(source) = sealed.or_else(|| decide(&answers, members.len())) else {
                self.rt.sleep(CALL).await;
                continue;
            };
            let PrepareOk { last_seq, len, digest, .. } = answers[&source].clone();
            assert_eq!(len, LEN, "the length of a re-opened chunk stays");
            let seal = Seal { term: Term(1), chunk, epoch, last_seq, len, digest, source: member(source) };
            let (mut holders, mut is_complete) = (Vec::new(), true);
            for node in answers.iter().filter(|(_, it)| it.healthy).map(|(node, _)| *node) {
                match self.command(node, &seal).await {
                    Ok(_) => holders.push(node),
                    Err(fault) => is_complete &= fault.reason == Reason::TooFar,
                }
            }
            if is_complete && !holders.is_empty() {
                let sealed = Sealed { epoch, len, digest, holders };
                self.chunks.borrow_mut().last_mut().unwrap().sealed = Some(sealed);
                return;
            }
            self.rt.sleep(CALL).await;
        }
    }

    fn open_now(&self) -> Option<Chunk> {
        self.chunks.borrow().last().cloned().filter(|_| self.is_open.get())
    }

    /// A writer: each version once, repeated until it is answered.
    async fn write_slots(&self, rt: SimRuntime, stream: u8, ops: u64, book: &RefCell<Book>, mut rng: Rng) {
        let mut talk: Option<(u32, Talk)> = None;
        for op in 1..=ops {
            let slot = rng.below(u64::from(SLOTS_EACH)) as u32 * u32::from(CLIENTS) + u32::from(stream - 1);
            let bytes = version(slot, op);
            book.borrow_mut().newest.insert(slot, op);
            loop {
                let Some(chunk) = self.open_now() else {
                    rt.sleep(Duration::from_millis(20)).await;
                    continue;
                };
                match self.try_write(&rt, &chunk, stream, op, slot, &bytes, &mut talk).await {
                    Ok(appended) => {
                        assert_eq!((appended.offset, appended.len), (slot * SLOT, SLOT));
                        self.acks.borrow_mut().insert((stream, op), appended);
                        book.borrow_mut().acked.insert(slot, op);
                        break;
                    }
                    Err(fault) => {
                        talk = None;
                        let is_mine = fault.kind == Kind::Invalid;
                        assert!(!is_mine, "stream {stream} op {op}: {:?} {fault}", fault.reason);
                        if fault.kind != Kind::Overloaded {
                            self.complain(chunk.handle);
                        }
                        rt.sleep(Duration::from_millis(1 + rng.below(50))).await;
                    }
                }
            }
        }
        self.clients_left.set(self.clients_left.get() - 1);
        self.trouble.notify_one();
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    async fn try_write(
        &self,
        rt: &SimRuntime,
        chunk: &Chunk,
        stream: u8,
        op: u64,
        slot: u32,
        bytes: &[u8],
        talk: &mut Option<(u32, Talk)>,
    ) -> Answer<Appended> {
        if talk.as_ref().is_none_or(|(of, _)| *of != chunk.epoch) {
            *talk = Some((chunk.epoch, Talk::dial(rt, chunk.members[0], Role::Client).await?));
        }
        let Some((_, talk)) = talk else { unreachable!("set above") };
        let write = Write {
            chunk: chunk.handle,
            epoch: Epoch(chunk.epoch),
            offset: slot * SLOT,
            id: OpId { stream: StreamId([stream; 16]), op },
            first_unacked: op,
            len: SLOT,
            crcs: wire::checksum::block_crcs(bytes),
        };
        talk.write(&write, bytes).await
    }

    /// Reads slots from any member, as long as somebody writes; gives how many answers it got.
    async fn watch_slots(&self, rt: SimRuntime, book: &RefCell<Book>, reads: &Cell<u32>, mut rng: Rng) {
        let mut seen: BTreeMap<u32, u64> = BTreeMap::new();
        while self.clients_left.get() > 0 {
            rt.sleep(Duration::from_micros(rng.below(3000))).await;
            let Some(chunk) = self.open_now() else { continue };
            let slot = rng.below(u64::from(LEN / SLOT)) as u32;
            let at_least =
                book.borrow().acked.get(&slot).copied().unwrap_or(0).max(seen.get(&slot).copied().unwrap_or(0));
            let node = chunk.members[rng.below(chunk.members.len() as u64) as usize];
            let Ok(mut talk) = Talk::dial(&rt, node, Role::Client).await else { continue };
            let epoch = Epoch(chunk.epoch);
            let read = Read { chunk: chunk.handle, epoch, offset: slot * SLOT, len: SLOT, min_seq: Seq(0) };
            let Ok((data, payload)) = talk.read(&read).await else { continue };
            // A location must not be used for longer than the lease.
            if self.open_now().is_none_or(|now| now.epoch != chunk.epoch) {
                continue;
            }
            let from = (slot * SLOT - data.offset) as usize;
            let op = version_of(slot, &payload[from..from + SLOT as usize]);
            let newest = book.borrow().newest.get(&slot).copied().unwrap_or(0);
            assert!((at_least..=newest).contains(&op), "slot {slot} at {node}: {op}, not {at_least} to {newest}");
            seen.insert(slot, op);
            reads.set(reads.get() + 1);
        }
    }
}

async fn campaign(cluster: Shared, seed: u64, plan: Plan) -> (u32, u32) {
    for index in 0..NODES {
        boot(&cluster, index);
    }
    let rt = cluster.rt.clone();
    cluster.prepare_slots(&mut Rng::new(seed, 50)).await;
    let (book, reads) = (Rc::new(RefCell::new(Book::default())), Rc::new(Cell::new(0)));
    let over = Rc::new(Cell::new(false));
    rt.spawn({
        let (cluster, over) = (Rc::clone(&cluster), Rc::clone(&over));
        async move {
            cluster.rule_reopened(seed.is_multiple_of(2)).await;
            over.set(true);
        }
    });
    for stream in 1..=CLIENTS {
        let (cluster, rng, book) = (Rc::clone(&cluster), Rng::new(seed, 60 + u64::from(stream)), Rc::clone(&book));
        let client = cluster.world.start(cluster.world.node(), MEMORY);
        client.clone().spawn(async move { cluster.write_slots(client, stream, plan.ops, &book, rng).await });
    }
    let reader = cluster.world.start(cluster.world.node(), MEMORY);
    reader.clone().spawn({
        let (cluster, book, reads) = (Rc::clone(&cluster), Rc::clone(&book), Rc::clone(&reads));
        async move { cluster.watch_slots(reader, &book, &reads, Rng::new(seed, 80)).await }
    });
    Rc::clone(&cluster).torment(plan, Rng::new(seed, 70)).await;
    let limit = rt.now() + Duration::from_secs(120);
    while !over.get() {
        assert!(rt.now() < limit, "faults have stopped, and writes do not end");
        rt.sleep(Duration::from_millis(100)).await;
    }
    cluster.confirm_all().await;
    let chunk = cluster.chunks.borrow().last().unwrap().clone();
    for holder in &chunk.sealed.as_ref().unwrap().holders {
        let content = cluster.content(*holder, chunk.handle, LEN).await;
        for (slot, bytes) in (0..).zip(content.chunks(SLOT as usize)) {
            let acked = book.borrow().acked.get(&slot).copied().unwrap_or(0);
            assert_eq!(version_of(slot, bytes), acked, "slot {slot} at holder {holder}");
        }
    }
    (cluster.seals.get(), reads.get())
}

fn run_overwrites(seed: u64, plan: Plan) -> (u32, u32) {
    Sim::new(seed).run(|rt| campaign(cluster(rt), seed, plan))
}

#[test]
fn without_faults_a_chunk_is_re_opened_once_and_readers_see_what_was_acknowledged() {
    let (seals, reads) = run_overwrites(1, Plan { ops: 40, faults: 0, kinds: ALL_KINDS });
    assert_eq!(seals, 1, "only the one at the end");
    assert!(reads > 10, "{reads}");
}

#[test]
fn whatever_breaks_every_holder_has_what_was_acknowledged_last_in_every_slot() {
    let first = std::env::var("HERCULES_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = match first {
        Some(seed) => seed..seed + 1,
        None => 0..std::env::var("HERCULES_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(12),
    };
    let (mut seals, mut reads, count) = (0, 0, seeds.end - seeds.start);
    for seed in seeds {
        eprintln!("seed {seed}: repeat with HERCULES_SEED={seed}");
        let (sealed, read) = run_overwrites(seed, Plan { ops: 60, faults: 15, kinds: ALL_KINDS });
        (seals, reads) = (seals + sealed, reads + read);
    }
    assert!(u64::from(seals) > count && reads > 0, "the faults must make it seal: {seals} seals, {reads} reads");
}
