//! Campaigns of seeds: how many, on which cores, what a failing one said, and which branches were reached.
//! For tests of whatever runs on the simulation; nothing here is deterministic by itself, each seed is.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// Who waits for the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Somebody at a keyboard, or every `cargo test`: seconds.
    Short,
    /// A campaign of its own: minutes.
    Ci,
    /// `make nightly`: hours.
    Night,
}

impl Tier {
    /// As this environment variable says: `short` (also when it is not set), `ci` or `night`.
    ///
    /// # Panics
    ///
    /// It says something else.
    #[must_use]
    pub fn from_env(variable: &str) -> Self {
        match std::env::var(variable).as_deref() {
            Err(_) | Ok("short") => Self::Short,
            Ok("ci") => Self::Ci,
            Ok("night") => Self::Night,
            Ok(other) => panic!("{variable} is {other}: short, ci or night"),
        }
    }

    /// One of three sizes.
    pub fn pick<T>(self, short: T, ci: T, night: T) -> T {
        match self {
            Self::Short => short,
            Self::Ci => ci,
            Self::Night => night,
        }
    }
}

/// A number from the environment, decimal or `0x`.
///
/// # Panics
///
/// It is set to something else.
#[must_use]
pub fn number_from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Some(parsed.unwrap_or_else(|_| panic!("{name} is {text}: not a number")))
}

/// Runs `work` for the numbers from `from` on, on every core, until it says that it is enough or `to` is
/// reached; the first panic ends all, and is passed on.
pub fn on_every_core(from: u64, to: u64, work: impl Fn(u64) -> bool + Sync) {
    let (next, over) = (AtomicU64::new(from), AtomicBool::new(false));
    let turn = || {
        while !over.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= to {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| work(number))) {
                Ok(true) => {}
                Ok(false) => over.store(true, Ordering::Relaxed),
                Err(cause) => {
                    over.store(true, Ordering::Relaxed);
                    resume_unwind(cause);
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(turn)).collect();
        threads.into_iter().for_each(|thread| {
            if let Err(cause) = thread.join() {
                resume_unwind(cause);
            }
        });
    });
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Why this panics, if it does; what it would print is not for people, and is not printed. Replaces the
/// panic hook of the process once, by one that is as loud outside of this.
pub fn failure(work: impl FnOnce()) -> Option<String> {
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

static POINTS: Mutex<Vec<&'static Point>> = Mutex::new(Vec::new());

/// A branch that a campaign must reach; stands as a `static` where the branch is.
#[derive(Debug)]
pub struct Point {
    name: &'static str,
    count: AtomicU64,
}

impl Point {
    /// A branch of this name, for the tables.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, count: AtomicU64::new(0) }
    }

    /// It was reached.
    pub fn hit(&'static self) {
        if self.count.fetch_add(1, Ordering::Relaxed) == 0 {
            POINTS.lock().unwrap_or_else(PoisonError::into_inner).push(self);
        }
    }
}

/// Every branch that was reached in this process, and how often.
#[must_use]
pub fn hits() -> BTreeMap<&'static str, u64> {
    let mut hits = BTreeMap::new();
    for point in POINTS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        *hits.entry(point.name).or_default() += point.count.load(Ordering::Relaxed);
    }
    hits
}
