//! Every planted bug must be found: a campaign that does not find one has gone blind.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::chain;
use super::sequence::{self, Plan};
use crate::runtime::sim::campaign::{Tier, failure, number_from_env, on_every_core};
use crate::runtime::sim::real_time;
use crate::store::canary::{Bug, Planted};

/// Whether this panics; what it would print is not for people.
pub(super) fn fails(work: impl FnOnce()) -> bool {
    failure(work).is_some()
}

/// Who finds a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Random sequences.
    Sequences,
    /// A scenario made for it: what it takes is too rare for random work.
    Scenario,
}

/// How a bug was found.
struct Found {
    by: By,
    /// Seeds that were needed, each time.
    seeds: Vec<u64>,
    took: Duration,
}

/// Those that take more than seconds: the short tier leaves them out, CI runs one of them at a time.
const SLOW: &[Bug] = &[Bug::EveryWriterChecked, Bug::CurrentRootFirst, Bug::SlotReusedEarly, Bug::RootsNotHealed];

/// Most seeds: ten times what the models of the design needed, and at least 2,000.
fn budget(bug: Bug) -> u64 {
    match bug {
        Bug::SlotReusedEarly => 2_600,
        Bug::ChainNotChecked => 1,
        _ => 2_000,
    }
}

/// Where a bug is looked for.
fn finder(bug: Bug) -> By {
    match bug {
        Bug::ChainNotChecked => By::Scenario,
        _ => By::Sequences,
    }
}

fn seed_finds(bug: Option<Bug>, by: By, seed: u64) -> bool {
    fails(|| {
        let _planted = Planted::new(bug);
        match by {
            By::Sequences => {
                sequence::run(&Plan::new(seed));
            }
            By::Scenario => chain::a_stale_record_has_the_next_number(seed),
        }
    })
}

/// Looks for a bug `times` times.
fn hunt(bug: Bug, times: usize) -> Option<Found> {
    let started = real_time();
    let by = finder(bug);
    let (mut seeds, mut seed) = (Vec::new(), 1);
    while seeds.len() < times {
        let first = seed;
        // A seed that fails without the bug as well has not found it.
        while !seed_finds(Some(bug), by, seed) || seed_finds(None, by, seed) {
            seed += 1;
            if seed - first >= budget(bug) {
                return None;
            }
        }
        seed += 1;
        seeds.push(seed - first);
    }
    seeds.sort_unstable();
    Some(Found { by, seeds, took: started.elapsed() })
}

fn row(bug: Bug, found: Option<&Found>) -> String {
    let (number, what) = (bug.number(), bug.what());
    match found {
        Some(Found { by, seeds, took }) => {
            let (median, most) = (seeds[seeds.len() / 2], seeds[seeds.len() - 1]);
            format!("{number:<4} {what:<62} {median:>8} {most:>8} {:>9.2}  {by:?}", took.as_secs_f64())
        }
        None => format!("{number:<4} {what:<62} SURVIVED {} seeds", budget(bug)),
    }
}

#[test]
fn every_planted_bug_is_found() {
    let tier = Tier::from_env("STORE_TIER");
    let only = std::env::var("CANARY").ok();
    // Those that take long come by turns: which one, the day says, or who asks for all of them.
    let turn = number_from_env("STORE_TURN").unwrap_or(0);
    let by_turns = |bug: &Bug| {
        let place = SLOW.iter().position(|slow| slow == bug);
        place.is_none_or(|place| tier == Tier::Night || (tier == Tier::Ci && place as u64 == turn % SLOW.len() as u64))
    };
    let wanted = |bug: &Bug| only.as_deref().is_none_or(|only| only.split(',').any(|name| name == bug.number()));
    let bugs: Vec<Bug> =
        Bug::ALL.iter().copied().filter(wanted).filter(|bug| only.is_some() || by_turns(bug)).collect();
    let times = usize::try_from(number_from_env("STORE_TIMES").unwrap_or(tier.pick(1, 3, 9))).unwrap();
    let table = Mutex::new(BTreeMap::new());
    on_every_core(0, bugs.len() as u64, |index| {
        let bug = bugs[usize::try_from(index).unwrap()];
        // Of one that takes long, once is enough in CI.
        let times = if tier == Tier::Ci && SLOW.contains(&bug) { 1 } else { times };
        let found = hunt(bug, times);
        println!("{}", row(bug, found.as_ref()));
        table.lock().unwrap_or_else(PoisonError::into_inner).insert(bug, found);
        true
    });
    let table = table.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{:<4} {:<62} {:>8} {:>8} {:>9}  by", "", "planted bug", "median", "most", "seconds");
    table.iter().for_each(|(bug, found)| println!("{}", row(*bug, found.as_ref())));
    let survived: Vec<_> = table.iter().filter(|(_, found)| found.is_none()).map(|(bug, _)| bug.number()).collect();
    assert!(survived.is_empty(), "the tests have gone blind for {survived:?}");
}
