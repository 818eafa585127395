//! Many seeds on every core, and what they must have shown.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::plan::Plan;
use super::run;
use crate::canary::hits;
use crate::clock;

/// Who waits for the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    /// Part of every `cargo test`.
    Short,
    /// `make sim`.
    Ci,
    /// `make nightly`.
    Night,
}

impl Tier {
    pub(super) fn get() -> Self {
        match std::env::var("SIM_TIER").as_deref() {
            Err(_) | Ok("short") => Self::Short,
            Ok("ci") => Self::Ci,
            Ok("night") => Self::Night,
            Ok(other) => panic!("SIM_TIER is {other}: short, ci or night"),
        }
    }

    /// One of three sizes.
    pub(super) fn pick<T>(self, short: T, ci: T, night: T) -> T {
        match self {
            Self::Short => short,
            Self::Ci => ci,
            Self::Night => night,
        }
    }
}

/// A number from the environment, decimal or `0x`.
pub(super) fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Some(parsed.unwrap_or_else(|_| panic!("{name} is {text}: not a number")))
}

/// Whether a plan fails.
pub(super) fn fails(plan: &Plan) -> bool {
    let work = || {
        run(plan);
    };
    failure(work).is_some()
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Why this panics, if it does; nothing is printed.
pub(super) fn failure(work: impl FnOnce()) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    outcome.err().map(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        text.or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}

/// Runs `work` for the numbers from `from` on, on every core, until it says that it is enough or `to` is reached.
pub(super) fn on_every_core(from: u64, to: u64, work: impl Fn(u64) -> bool + Sync) {
    let (next, over) = (AtomicU64::new(from), AtomicBool::new(false));
    let turn = || {
        while !over.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= to {
                return;
            }
            if !work(number) {
                over.store(true, Ordering::Relaxed);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(turn);
        }
    });
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
    let tier = Tier::get();
    let count = from_env("SIM_SEEDS").unwrap_or(tier.pick(100, 20_000, 400_000));
    let (from, to) = from_env("SIM_SEED").map_or((1, 1 + count), |seed| (seed, seed + 1));
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
            return failures.fetch_add(1, Ordering::Relaxed) + 1 < from_env("SIM_FAILURES").unwrap_or(1);
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
