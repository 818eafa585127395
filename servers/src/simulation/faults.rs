//! What goes wrong, one thing after the other, and the end of it.

use std::time::Duration;

use engine::runtime::sim::{Fault, NodeId, Op, Rng, Rule, Timing};
use engine::runtime::{FileId, Runtime};

use super::Cluster;
use super::plan::Kind;
use crate::canary::sometimes;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

impl Cluster {
    /// Breaks things while there is work, then mends all of it.
    pub(super) async fn torment(&self) {
        let mut rng = Rng::new(self.plan.seed, 70);
        for _ in 0..self.plan.faults {
            self.wait_for_work(&mut rng).await;
            if self.clients_left.get() == 0 {
                break;
            }
            // Some of what broke comes back meanwhile.
            match rng.below(6) {
                0 => self.world.heal(),
                1 | 2 => self.revive(),
                _ => {}
            }
            // A kind that is left out leaves the others where they are.
            let kind = Kind::ALL[rng.below(Kind::ALL.len() as u64) as usize];
            let mut own = Rng::new(rng.next(), 71);
            if self.plan.kinds.contains(&kind) {
                tracing::info!(?kind, now = ?self.world.now(), "fault");
                self.world.note(self.rt.node(), &format!("{kind:?}"));
                self.breaks(kind, &mut own).await;
            }
        }
        self.mend();
    }

    /// Things break while something is in flight; between two there is time to get on, or to try in vain.
    async fn wait_for_work(&self, rng: &mut Rng) {
        let goal = self.history.acked() + 1 + rng.below(3) as usize;
        let limit = self.rt.now() + Duration::from_millis(20 + rng.below(1500));
        while self.history.acked() < goal && self.rt.now() < limit && self.clients_left.get() > 0 {
            self.rt.sleep(Duration::from_millis(2)).await;
        }
        self.rt.sleep(Duration::from_micros(rng.below(8000))).await;
    }

    async fn breaks(&self, kind: Kind, rng: &mut Rng) {
        let any = rng.below(self.servers.len() as u64) as usize;
        let head = self.head().unwrap_or(any);
        match kind {
            Kind::Reset => {
                if let Some((a, b)) = self.two(rng) {
                    self.world.reset(a, b);
                }
            }
            Kind::ResetChain => self.reset_chain(rng),
            Kind::CutOneWay => {
                if let Some((a, b)) = self.two(rng) {
                    self.world.cut(a, b);
                }
            }
            Kind::CutBothWays => {
                if let Some((a, b)) = self.two(rng) {
                    self.cut_off(a, &[b]);
                }
            }
            Kind::IsolateHead => self.isolate_head(head),
            Kind::IsolateMaster => {
                let others: Vec<NodeId> = self.everybody().into_iter().filter(|_| rng.once_in(2)).collect();
                let master = self.master.borrow().as_ref().map(|(node, _)| *node);
                if let Some(master) = master {
                    self.cut_off(master, &others);
                }
            }
            Kind::Swizzle => self.swizzle(rng).await,
            Kind::Crash => self.kill(any, rng),
            Kind::CrashHead => self.kill(head, rng),
            Kind::BlackOut => self.black_out(head, rng),
            Kind::CrashMaster => {
                self.kill_master();
                self.rt.sleep(Duration::from_millis(rng.below(300))).await;
                self.boot_master();
                sometimes!("the master restarts");
            }
            Kind::Delay => self.world.set_delay(Duration::ZERO, Duration::from_micros(100 << rng.below(10))),
            Kind::SlowDisk => self.servers[any].disk.set_timing(slower(if rng.once_in(2) { 10 } else { 100 })),
            Kind::DiskError => {
                let op = [Op::Write, Op::Sync, Op::Read][rng.below(3) as usize];
                let disk = &self.servers[if rng.once_in(2) { head } else { any }].disk;
                disk.inject(Rule::new(op, Fault::Error(EIO)).one_in(1 + rng.below(8)));
            }
            Kind::DiskFull => {
                let disk = &self.servers[any].disk;
                disk.inject(Rule::new(Op::Preallocate, Fault::Error(ENOSPC)).times(1 + rng.below(4)));
                disk.inject(Rule::new(Op::Write, Fault::Error(ENOSPC)).one_in(1 + rng.below(20)));
            }
            Kind::ClockJump => {
                let ten_years = 10 * 365 * 86_400_000;
                self.log.wall.offset_ms.set(rng.below(2 * ten_years) as i64 - ten_years as i64);
            }
            Kind::Liar => {
                if let Some(weak) = self.weak {
                    sometimes!("a lying disk loses power");
                    if rng.once_in(2) {
                        self.kill(weak, rng);
                    } else {
                        self.alone(weak, rng).await;
                    }
                }
            }
            Kind::Rot => self.rot(rng),
        }
    }

    /// The head of the newest chain.
    fn head(&self) -> Option<usize> {
        let head = self.look(|state| state.open_chunks().last().map(|(_, row)| row.members[0]))?;
        head.map(|server| server.0 as usize - 1)
    }

    fn everybody(&self) -> Vec<NodeId> {
        let servers = self.servers.iter().filter_map(|server| server.life.get());
        let master = self.master.borrow().as_ref().map(|(node, _)| *node);
        servers.chain(master).chain(self.clients.borrow().iter().copied()).collect()
    }

    fn two(&self, rng: &mut Rng) -> Option<(NodeId, NodeId)> {
        let all = self.everybody();
        let (a, b) = (all[rng.below(all.len() as u64) as usize], all[rng.below(all.len() as u64) as usize]);
        (a != b).then_some((a, b))
    }

    fn cut_off(&self, node: NodeId, others: &[NodeId]) {
        for other in others.iter().filter(|other| **other != node) {
            self.world.cut(node, *other);
            self.world.cut(*other, node);
        }
    }

    fn isolate_head(&self, head: usize) {
        let Some(id) = self.servers[head].life.get() else { return };
        let others = self.servers.iter().filter_map(|server| server.life.get());
        let master = self.master.borrow().as_ref().map(|(node, _)| *node);
        self.cut_off(id, &others.chain(master).collect::<Vec<_>>());
    }

    async fn swizzle(&self, rng: &mut Rng) {
        let servers: Vec<NodeId> = self.servers.iter().filter_map(|server| server.life.get()).collect();
        let mut links: Vec<(NodeId, NodeId)> =
            servers.iter().flat_map(|a| servers.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b).collect();
        shuffle(&mut links, rng);
        for (a, b) in &links {
            self.world.cut(*a, *b);
            self.rt.sleep(Duration::from_micros(rng.below(40_000))).await;
        }
        shuffle(&mut links, rng);
        for (a, b) in &links {
            self.world.mend(*a, *b);
            self.rt.sleep(Duration::from_micros(rng.below(40_000))).await;
        }
    }

    fn reset_chain(&self, rng: &mut Rng) {
        let chain = self.look(|state| state.open_chunks().last().map(|(_, row)| row.members.clone()));
        let Some(chain) = chain.flatten().filter(|chain| chain.len() > 1) else { return };
        let at = rng.below(chain.len() as u64 - 1) as usize;
        let life = |at: usize| self.servers[chain[at].0 as usize - 1].life.get();
        if let (Some(a), Some(b)) = (life(at), life(at + 1)) {
            self.world.reset(a, b);
        }
    }

    fn kill(&self, index: usize, rng: &mut Rng) {
        let Some(id) = self.servers[index].life.take() else { return };
        self.world.crash(id);
        if rng.once_in(2) {
            self.servers[index].disk.power_cut(rng.next());
        }
    }

    /// Power loss everywhere; all but the head come back, or all.
    fn black_out(&self, head: usize, rng: &mut Rng) {
        for server in &self.servers {
            if let Some(id) = server.life.take() {
                self.world.crash(id);
                server.disk.power_cut(rng.next());
            }
        }
        let spared = rng.once_in(2).then_some(head);
        for index in (0..self.servers.len()).filter(|index| Some(*index) != spared) {
            self.boot(index);
        }
    }

    /// Power loss everywhere, and for a while only one comes back: nobody may take its word alone.
    async fn alone(&self, index: usize, rng: &mut Rng) {
        self.black_out(index, rng);
        for server in &self.servers {
            if let Some(id) = server.life.take() {
                self.world.crash(id);
            }
        }
        self.boot(index);
        self.rt.sleep(Duration::from_millis(rng.below(5000))).await;
        self.revive();
    }

    fn rot(&self, rng: &mut Rng) {
        let Some(weak) = self.weak else { return };
        let disk = &self.servers[weak].disk;
        let files: Vec<FileId> = disk.files().into_iter().filter(|file| matches!(file, FileId::Slot(_))).collect();
        if files.is_empty() {
            return;
        }
        let file = files[rng.below(files.len() as u64) as usize];
        let len = disk.len(file).unwrap_or_default().min(1 << 20);
        if len > 0 {
            sometimes!("bytes of a slot rot");
            disk.rot(file, rng.below(len), &[1 << rng.below(8)]);
        }
    }

    fn revive(&self) {
        for index in 0..self.servers.len() {
            let server = &self.servers[index];
            if server.ended.borrow().is_some()
                && let Some(id) = server.life.take()
            {
                self.world.crash(id);
            }
            if server.life.get().is_none() {
                self.boot(index);
            }
        }
    }

    /// No fault from now on. Disks that failed a call are fenced until their server starts again.
    fn mend(&self) {
        tracing::info!(now = ?self.world.now(), "faults end");
        self.world.set_delay(Duration::ZERO, Duration::from_millis(1));
        self.world.heal();
        self.log.wall.offset_ms.set(0);
        let restarts = self.plan.kinds.iter().any(|kind| matches!(kind, Kind::DiskError | Kind::DiskFull));
        for server in &self.servers {
            server.disk.heal();
            server.disk.set_liar(false);
            server.disk.set_timing(Timing::default());
            if restarts && let Some(id) = server.life.take() {
                self.world.crash(id);
            }
        }
        self.revive();
    }
}

fn slower(times: u32) -> Timing {
    let Timing { access, per_mib, sync, other } = Timing::default();
    Timing { access: access * times, per_mib: per_mib * times, sync: sync * times, other: other * times }
}

fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for at in (1..items.len()).rev() {
        items.swap(at, rng.below(at as u64 + 1) as usize);
    }
}
