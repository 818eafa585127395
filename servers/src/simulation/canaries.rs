//! Every planted bug of the protocol must be found: a simulation that does not find one has gone blind.

use std::sync::atomic::{AtomicU64, Ordering};

use engine::runtime::sim::campaign::{Tier, failure, on_every_core};

use super::campaign::{TIER, fails};
use super::plan::Plan;
use super::run;
use crate::canary::{Bug, Planted};
use crate::clock;

/// Those whose discovery takes minutes: the short tier leaves them out.
const SLOW: &[Bug] = &[Bug::BeforeDurable, Bug::AnyAnswerSeals, Bug::GapsAdmitted];

/// The seed that finds a bug: it fails with it, and not without.
fn find(bug: Bug) -> Option<(u64, String)> {
    let first = AtomicU64::new(u64::MAX);
    let why = std::sync::Mutex::new(None);
    on_every_core(1, 1 + bug.budget(), |seed| {
        let plan = Plan::new(seed);
        let found = failure(|| {
            let _planted = Planted::new(Some(bug));
            run(&plan);
        });
        let Some(text) = found.filter(|_| !fails(&plan)) else { return true };
        if first.fetch_min(seed, Ordering::Relaxed) > seed {
            *why.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(text);
        }
        false
    });
    let why = why.into_inner().unwrap_or_default();
    why.map(|why| (first.into_inner(), why))
}

#[test]
fn every_planted_bug_of_the_protocol_is_found() {
    let only = std::env::var("CANARY").ok();
    let named = |bug: &&Bug| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == bug.number()));
    let is_quick = |bug: &&Bug| only.is_some() || Tier::from_env(TIER) != Tier::Short || !SLOW.contains(bug);
    let mut survivors = Vec::new();
    for bug in Bug::ALL.iter().filter(named).filter(is_quick) {
        let started = clock::now();
        let found = find(*bug);
        let took = (clock::now() - started).as_secs_f64();
        match found {
            Some((seed, why)) => {
                let why = why.lines().next().unwrap_or_default();
                println!("{:>4} {}: found by seed {seed} in {took:.1} s: {why}", bug.number(), bug.what());
            }
            None => survivors.push(bug.number()),
        }
    }
    assert!(
        survivors.is_empty(),
        "not found within their budgets: {survivors:?}; make sim-canaries CANARY={}",
        survivors.join(",")
    );
}
