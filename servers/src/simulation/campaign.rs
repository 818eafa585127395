//! Many seeds on every core, and what they must have shown.

use std::sync::atomic::{AtomicU64, Ordering};

use engine::runtime::sim::campaign::{Tier, failure, hits, number_from_env, on_every_core};

use super::plan::Plan;
use super::run;
use crate::clock;

/// Names the tier.
pub(super) const TIER: &str = "SIM_TIER";

/// Whether a plan fails.
pub(super) fn fails(plan: &Plan) -> bool {
    let work = || {
        run(plan);
    };
    failure(work).is_some()
}

/// Branches that a long campaign must reach.
const REACHED: &[&str] = &[
    "CONFIRM is lost",
    "NAK GAP",
    "OUT_OF_ORDER",
    "a chain of two",
    "a chunk is abandoned",
    "a chunk is asked for again with a higher epoch",
    "a lying disk loses power",
    "a member asks the head how far it is",
    "a member does not know the chunk",
    "a member had entries that cannot be verified",
    "a member that restarted promises",
    "a planned seal",
    "a planned seal is overtaken by SealStart",
    "a report brings a lost CONFIRM up again",
    "a retry across a roll gets the first answer",
    "a shorter member is compared",
    "a stale replica joins again",
    "a stream is given up",
    "an entry comes again after a reconnect",
    "an entry of an epoch that is over",
    "an open chunk of the master's earlier life",
    "an operation whose outcome stays unknown",
    "bytes of a slot rot",
    "safe mode ends",
    "sealed by one",
    "sealed by three",
    "sealed by two",
    "the master restarts",
];

/// Seeds that once failed run first, each with what it was about. A change of the plans may change what a
/// seed does; the sentence says what it was about then.
const REGRESSIONS: &[(u64, &str)] = &[
    (0x1ad, "a clock set ahead made the master forget a table: an append that was repeated came twice"),
    (0x243, "a CONFIRM that was lost was not sent again: a holder showed less of a chunk than was sealed"),
];

#[test]
fn what_once_failed_in_a_cluster_does_not_fail_again() {
    for (seed, about) in REGRESSIONS {
        eprintln!("seed {seed:#x}: {about}");
        run(&Plan::new(*seed));
    }
}

#[test]
fn whatever_breaks_the_cluster_keeps_what_it_acknowledged() {
    let tier = Tier::from_env(TIER);
    let count = number_from_env("SIM_SEEDS").unwrap_or(tier.pick(100, 20_000, 400_000));
    let (from, to) = number_from_env("SIM_SEED").map_or((1, 1 + count), |seed| (seed, seed + 1));
    if let Ok(level) = std::env::var("SIM_LOG") {
        let level: tracing::Level = level.parse().unwrap_or_else(|_| panic!("SIM_LOG is {level}: no level"));
        tracing_subscriber::fmt().without_time().with_ansi(false).with_max_level(level).init();
    }
    let started = clock::now();
    let [failures, twice, acked, seals, virtual_ms] = [const { AtomicU64::new(0) }; 5];
    on_every_core(from, to, |seed| {
        let plan = Plan::new(seed);
        let mut outcome = None;
        if let Some(why) = failure(|| outcome = Some(run(&plan))) {
            let smallest = plan.shrunk(fails);
            let first = why.lines().next().unwrap_or_default();
            eprintln!("FAIL make sim SEED={seed:#x}\n  {first}\n  smallest that fails: {smallest}");
            if to - from == 1 {
                eprintln!("{why}");
            }
            return failures.fetch_add(1, Ordering::Relaxed) + 1 < number_from_env("SIM_FAILURES").unwrap_or(1);
        }
        let Some(outcome) = outcome else { unreachable!("it has not failed") };
        if seed % 20 == 0 {
            assert_eq!(run(&plan), outcome, "{plan} leaves two traces: make sim SEED={seed:#x}");
            twice.fetch_add(1, Ordering::Relaxed);
        }
        acked.fetch_add(outcome.acked as u64, Ordering::Relaxed);
        seals.fetch_add(u64::from(outcome.seals), Ordering::Relaxed);
        virtual_ms.fetch_add(outcome.took.as_millis() as u64, Ordering::Relaxed);
        true
    });
    let took = (clock::now() - started).as_secs_f64();
    let [failures, twice, acked, seals, virtual_ms] =
        [failures, twice, acked, seals, virtual_ms].map(|it| it.into_inner());
    println!(
        "{} clusters, {failures} failures, {acked} operations acknowledged, {seals} seals, {} h of cluster time; \
         {twice} of them twice with equal traces; {took:.0} s, {:.1} clusters/s",
        to - from,
        virtual_ms / 3_600_000,
        (to - from) as f64 / took
    );
    let hits = hits();
    println!("{hits:#?}");
    if to - from >= 2000 {
        let missed: Vec<_> = REACHED.iter().filter(|name| !hits.contains_key(*name)).collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
    }
    assert_eq!(failures, 0, "the lines above repeat what failed");
}
