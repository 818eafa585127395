//! Time and chance: the only place of this crate that asks for either.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Now, on the clock the runtime's timers use.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What is left until `deadline`.
pub(crate) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(now())
}

/// Random bytes from the operating system.
///
/// # Panics
///
/// When it has none: ids that may repeat would make retries of different clients one operation.
#[expect(clippy::expect_used, reason = "without randomness ids could repeat, and appends vanish as duplicates")]
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Cheap numbers for jitter and for spreading load.
#[derive(Debug)]
pub(crate) struct Noise(AtomicU64);

impl Noise {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(u64::from_le_bytes(random())))
    }

    pub(crate) fn next(&self) -> u64 {
        let mut x = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}
