//! What one seed does: how large the cluster is, what its clients want, and what goes wrong.

use std::fmt;

use engine::runtime::sim::Rng;

/// A kind of fault. Each seed has a random half of them: one without partitions finds what one with all
/// of them drowns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The connections between two processes are reset.
    Reset,
    /// Those between two neighbours of the newest chain.
    ResetChain,
    /// Nothing from one process reaches another, the other way it does.
    CutOneWay,
    /// Nothing passes between two processes.
    CutBothWays,
    /// The head of the newest chain sees its clients and nobody else.
    IsolateHead,
    /// The master sees some of the others.
    IsolateMaster,
    /// All links are clogged one after the other, and opened in another order.
    Swizzle,
    /// A chunkserver dies; its disk may lose what was not flushed.
    Crash,
    /// The head of the newest chain dies.
    CrashHead,
    /// All chunkservers lose power at once.
    BlackOut,
    /// The master dies and comes back.
    CrashMaster,
    /// Messages take up to 50 ms.
    Delay,
    /// A disk is up to a hundred times slower.
    SlowDisk,
    /// Calls to a disk fail.
    DiskError,
    /// A disk has no room.
    DiskFull,
    /// The wall clock of everybody jumps by up to ten years.
    ClockJump,
    /// One server's disk forgets what it said was flushed.
    Liar,
    /// Bytes on that disk change.
    Rot,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 18] = [
        Self::Reset,
        Self::ResetChain,
        Self::CutOneWay,
        Self::CutBothWays,
        Self::IsolateHead,
        Self::IsolateMaster,
        Self::Swizzle,
        Self::Crash,
        Self::CrashHead,
        Self::BlackOut,
        Self::CrashMaster,
        Self::Delay,
        Self::SlowDisk,
        Self::DiskError,
        Self::DiskFull,
        Self::ClockJump,
        Self::Liar,
        Self::Rot,
    ];
}

/// Kinds that find what is not mended yet ("Open" in docs/testing.md): left out unless `SIM_ALL` is set.
const OPEN: &[Kind] = &[Kind::DiskError];

/// One run. The same plan gives the same run, bit for bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Chunkservers.
    pub(super) servers: usize,
    /// Clients, each with streams of its own.
    pub(super) clients: u8,
    /// Operations of each client.
    pub(super) ops: u64,
    /// Things that break.
    pub(super) faults: u32,
    /// Of these kinds.
    pub(super) kinds: Vec<Kind>,
}

impl Plan {
    /// What a seed stands for.
    pub(super) fn new(seed: u64) -> Self {
        let with_all = std::env::var_os("SIM_ALL").is_some();
        let mut rng = Rng::new(seed, 40);
        let servers = match rng.below(10) {
            0..4 => 3,
            4..7 => 4,
            7..9 => 5,
            _ => 6 + rng.below(4) as usize,
        };
        let clients = 1 + [0, 0, 1, 1, 2, 7][rng.below(6) as usize];
        let ops = 3 + rng.below(12) / u64::from(clients).min(4);
        let faults = 3 + rng.below(20) as u32;
        let drawn = Kind::ALL.into_iter().filter(|_| rng.once_in(2));
        let kinds = drawn.filter(|kind| with_all || !OPEN.contains(kind)).collect();
        Self { seed, servers, clients, ops, faults, kinds }
    }

    /// Leaves things out as long as it still fails.
    pub(super) fn shrunk(&self, fails: impl Fn(&Self) -> bool) -> Self {
        let mut best = self.clone();
        for kind in &self.kinds {
            let kinds = best.kinds.iter().copied().filter(|it| it != kind).collect();
            let smaller = Self { kinds, ..best.clone() };
            if fails(&smaller) {
                best = smaller;
            }
        }
        for servers in 3..best.servers {
            let smaller = Self { servers, ..best.clone() };
            if fails(&smaller) {
                best = smaller;
                break;
            }
        }
        let halves = |value: u32| std::iter::successors(Some(value / 2), |it| Some(it / 2)).take_while(|it| *it > 0);
        for faults in halves(best.faults).collect::<Vec<_>>().into_iter().rev() {
            let smaller = Self { faults, ..best.clone() };
            if fails(&smaller) {
                best = smaller;
                break;
            }
        }
        for ops in halves(best.ops as u32).collect::<Vec<_>>().into_iter().rev() {
            let smaller = Self { ops: u64::from(ops), ..best.clone() };
            if fails(&smaller) {
                best = smaller;
                break;
            }
        }
        for clients in 1..best.clients {
            let smaller = Self { clients, ..best.clone() };
            if fails(&smaller) {
                best = smaller;
                break;
            }
        }
        best
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, servers, clients, ops, faults, kinds } = self;
        write!(f, "seed={seed:#x} servers={servers} clients={clients} ops={ops} faults={faults} kinds={kinds:?}")
    }
}
