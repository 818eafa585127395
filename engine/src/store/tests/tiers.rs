//! How much a campaign does, and how it uses the cores.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Who waits for the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    /// Somebody at a keyboard: seconds.
    Short,
    /// `make test`: minutes.
    Ci,
    /// `make nightly`: hours.
    Night,
}

impl Tier {
    pub(super) fn get() -> Self {
        match std::env::var("STORE_TIER").as_deref() {
            Err(_) | Ok("short") => Self::Short,
            Ok("ci") => Self::Ci,
            Ok("night") => Self::Night,
            Ok(other) => panic!("STORE_TIER is {other}: short, ci or night"),
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

/// Runs `work` for the numbers from `from` on, on every core, until it says that it is enough or `to` is
/// reached; the first panic ends all.
pub(super) fn on_every_core(from: u64, to: u64, work: impl Fn(u64) -> bool + Sync) {
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
