//! Every write boundary of every kind of operation, and what a power cut there can leave.
//!
//! A script is a life of a disk, from its format on. Whenever the disk has changed in it (a write, a sync,
//! an open, an allocation has completed), its power is cut in every way that matters: all subsets of the
//! undecided sectors and metadata when there are at most twelve, else samples. What the script has in flight
//! counts as just completed, so the states between issuing and completion are among them. Each distinct
//! disk is recovered with some number of shards and compared with the model. For some of them recovery
//! itself is crashed at each of its own changes of the disk, and for some the next life does a step and
//! is cut as well.
//!
//! A disk that was seen before in a script, while the same operations were issued and acknowledged, is
//! counted as `drawn` and not recovered again: `distinct` is what was recovered and compared.

mod cuts;
mod script;
mod state;
mod steps;

use std::collections::BTreeMap;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::runtime::sim::campaign::{Tier, hits, number_from_env, on_every_core};

/// Numbers of shards, before the crash and after it.
const SHARDS: [u32; 4] = [1, 2, 3, 5];

/// What was done for one kind of operation.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// Moments at which the power was cut.
    boundaries: u64,
    /// Of them, those where every subset was tried.
    complete: u64,
    /// Cuts.
    drawn: u64,
    /// Distinct disks: each recovered and compared.
    distinct: u64,
    /// Of them, those after a second crash inside recovery.
    deeper: u64,
    /// Of them, those after a life that followed the crash.
    second_life: u64,
    /// Real time.
    took: Duration,
}

/// Of a whole campaign.
#[derive(Debug, Default)]
struct Tally {
    rows: BTreeMap<&'static str, Row>,
    /// By shards before and after.
    shards: BTreeMap<(u32, u32), u64>,
    /// States that were recovered twice, with equal traces.
    repeated: u64,
    scripts: u64,
}

impl Tally {
    fn row(&mut self, kind: &'static str) -> &mut Row {
        self.rows.entry(kind).or_default()
    }

    fn distinct(&self) -> u64 {
        self.rows.values().map(|row| row.distinct).sum()
    }

    fn merge(&mut self, other: Self) {
        for (kind, more) in other.rows {
            let row = self.row(kind);
            row.boundaries += more.boundaries;
            row.complete += more.complete;
            row.drawn += more.drawn;
            row.distinct += more.distinct;
            row.deeper += more.deeper;
            row.second_life += more.second_life;
            row.took += more.took;
        }
        for (pair, count) in other.shards {
            *self.shards.entry(pair).or_default() += count;
        }
        self.repeated += other.repeated;
        self.scripts += other.scripts;
    }

    fn print(&self, took: Duration) {
        println!(
            "{:<34} {:>9} {:>9} {:>10} {:>10} {:>10} {:>8} {:>8}",
            "kind of operation", "moments", "complete", "drawn", "distinct", "in recov.", "2nd life", "/s core"
        );
        for (kind, row) in &self.rows {
            println!(
                "{kind:<34} {:>9} {:>9} {:>10} {:>10} {:>10} {:>8} {:>8.0}",
                row.boundaries,
                row.complete,
                row.drawn,
                row.distinct,
                row.deeper,
                row.second_life,
                row.distinct as f64 / row.took.as_secs_f64().max(1e-9)
            );
        }
        let pairs: Vec<_> =
            self.shards.iter().map(|((before, after), count)| format!("{before}>{after}: {count}")).collect();
        println!("shards before>after: {}", pairs.join("  "));
        println!(
            "{} scripts, each twice with equal traces; {} states recovered and compared ({} drawn), {} of them twice with \
             equal traces; 0 violations; {:.0} s, {:.0} states/s",
            self.scripts,
            self.distinct(),
            self.rows.values().map(|row| row.drawn).sum::<u64>(),
            self.repeated,
            took.as_secs_f64(),
            self.distinct() as f64 / took.as_secs_f64().max(1e-9)
        );
    }
}

/// Branches that one run must reach (`docs/testing.md`).
const REACHED: &[&str] = &[
    "torn end cut",
    "suspect cut",
    "record of another boot_gen at the end of the chain",
    "root copies differ at start: A newer",
    "header healed",
    "more shards than before",
    "fewer shards than before",
    "checkpoint with held-back records",
    "commit that needed fdatasync(slot)",
    "tail rebuilt from TAIL",
    "slot re-used while the old chunk is still in the ring",
    "second power cut within a simulated second",
    "crash in steps 2 to 5, roots healed",
    "crash in step 6, slots written",
    "crash in step 7, journals written",
    "crash in step 8, DISK written",
];

#[test]
fn every_crash_at_every_write_leaves_a_prefix_with_everything_acknowledged() {
    let tier = Tier::from_env("STORE_TIER");
    let target = number_from_env("STORE_STATES").unwrap_or(tier.pick(20_000, 1_000_000, 10_000_000));
    let (from, to) = number_from_env("STORE_SEED").map_or((1, u64::MAX), |seed| (seed, seed + 1));
    let samples = tier.pick(8, 48, 256);
    let started = crate::runtime::sim::real_time();
    let total = Mutex::new(Tally::default());
    on_every_core(from, to, |seed| {
        let tally = match catch_unwind(|| script::run(seed, samples)) {
            Ok(tally) => tally,
            Err(cause) => {
                eprintln!("FAIL make crash SEED={seed:#x}");
                resume_unwind(cause);
            }
        };
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        total.merge(tally);
        total.distinct() < target
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.print(started.elapsed());
    if to == u64::MAX {
        let hits = hits();
        let missed: Vec<_> = REACHED.iter().filter(|name| !hits.contains_key(*name)).collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
        if tier > Tier::Short {
            assert_eq!(total.shards.len(), SHARDS.len() * SHARDS.len(), "every pair of shard counts");
        }
    }
}
