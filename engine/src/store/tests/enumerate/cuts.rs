//! What a power cut can leave at one moment: every subset of what is undecided, or a sample.

use crate::runtime::sim::{Rng, SimDisk, Unit};

/// So many undecided units are enumerated in full: 4,096 subsets.
const ALL_UP_TO: usize = 12;

/// The cuts of one moment.
pub(super) enum Cuts {
    /// Every subset of these units.
    All(Vec<Unit>),
    /// So many samples, torn sector by sector.
    Samples { count: u64, seed: u64 },
}

impl Cuts {
    pub(super) fn of(disk: &SimDisk, samples: u64, seed: u64) -> Self {
        let units = disk.undecided();
        if units.len() <= ALL_UP_TO { Self::All(units) } else { Self::Samples { count: samples, seed } }
    }

    pub(super) fn is_complete(&self) -> bool {
        matches!(self, Self::All(_))
    }

    pub(super) fn count(&self) -> u64 {
        match self {
            Self::All(units) => 1 << units.len(),
            Self::Samples { count, .. } => *count,
        }
    }

    /// A fork of the disk on which the power was cut in the way of this number.
    pub(super) fn cut(&self, disk: &SimDisk, number: u64) -> SimDisk {
        let fork = disk.fork();
        match self {
            Self::All(units) => {
                // It asks in the order of the units, and for those between them that change nothing.
                let mut next = units.iter().zip(0..).peekable();
                fork.power_cut_keeping(|unit| {
                    next.next_if(|(decided, _)| *decided == unit).is_some_and(|(_, bit)| number & (1 << bit) != 0)
                });
                assert!(next.peek().is_none(), "every unit was decided");
            }
            Self::Samples { seed, .. } => match number {
                0 => fork.power_cut_keeping(|_| false),
                1 => fork.power_cut_keeping(|_| true),
                _ => fork.power_cut(Rng::new(*seed, number).next()),
            },
        }
        fork
    }
}
