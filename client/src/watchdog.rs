//! How long silence may last before it is trouble: from how long answers took lately.

use std::time::Duration;

/// Never less: a pause of the operating system is not a failure.
const LIMIT_MIN: Duration = Duration::from_secs(1);

/// Never more: whoever waits wants to go on.
const LIMIT_MAX: Duration = Duration::from_secs(10);

/// Before enough answers came: a first flush on a busy disk may be slow.
const LIMIT_AT_FIRST: Duration = Duration::from_secs(3);

/// Answers that count as enough.
const ENOUGH: u64 = 16;

/// Length of one span of observation; two are looked at.
const SPAN: Duration = Duration::from_secs(30);

/// The slowest answer of the last half minute to minute, and from it the limit. The slowest rather
/// than the 99th percentile: it is cheaper to keep, and errs towards patience.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watchdog {
    answers: u64,
    slowest: [Duration; 2],
    since: Duration,
}

impl Watchdog {
    /// An answer came that took `latency`.
    pub(crate) fn note(&mut self, now: Duration, latency: Duration) {
        if now.saturating_sub(self.since) >= SPAN {
            self.slowest = [Duration::ZERO, self.slowest[0]];
            self.since = now;
        }
        self.answers += 1;
        self.slowest[0] = self.slowest[0].max(latency);
    }

    /// How long to wait: 20 times the slowest, 1 to 10 s.
    pub(crate) fn limit(&self) -> Duration {
        if self.answers < ENOUGH {
            return LIMIT_AT_FIRST;
        }
        (self.slowest[0].max(self.slowest[1]) * 20).clamp(LIMIT_MIN, LIMIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_limit_follows_the_slowest_recent_answer_within_its_bounds() {
        let mut dog = Watchdog::default();
        assert_eq!(dog.limit(), LIMIT_AT_FIRST);
        (0..ENOUGH).for_each(|_| dog.note(MS, MS));
        assert_eq!(dog.limit(), LIMIT_MIN);
        dog.note(2 * MS, 150 * MS);
        assert_eq!(dog.limit(), Duration::from_secs(3));
        dog.note(3 * MS, 5000 * MS);
        assert_eq!(dog.limit(), LIMIT_MAX);
    }

    #[test]
    fn a_slow_answer_is_forgotten_after_two_spans() {
        let mut dog = Watchdog::default();
        (0..ENOUGH).for_each(|_| dog.note(MS, 200 * MS));
        dog.note(SPAN + MS, MS);
        assert_eq!(dog.limit(), Duration::from_secs(4));
        dog.note(SPAN * 2 + 2 * MS, MS);
        assert_eq!(dog.limit(), LIMIT_MIN);
    }
}
