//! The one file of the servers that reads a clock. Decisions take `now` as an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Monotonic time since the first call in this process.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is where the servers read the clock")]
pub fn now() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Wall time for display and for the trash: milliseconds since 1970. Zero on a clock before that.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is where the servers read the clock")]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
