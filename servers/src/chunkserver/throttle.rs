//! How fast a clone may write. Pure: what was written and how long the disk took for it comes in, how
//! long to wait goes out.
//!
//! Without a rate that somebody chose, a clone takes [`SHARE`] of what the disk can do, measured by its
//! own writes: a disk that is busy with others is slower, and is left alone for longer.

use std::time::Duration;

/// Part of the disk's bandwidth that a clone may take, in percent.
const SHARE: u32 = 30;

/// One wait is never longer: a clone that hangs would hold its slot.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The pace of one clone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throttle {
    /// Bytes per second; zero: [`SHARE`].
    rate: u64,
    /// The next piece is due then, at this rate.
    due: Option<Duration>,
}

impl Throttle {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, due: None }
    }

    /// `len` bytes were written in `took`; how long to wait before the next ones.
    pub(crate) fn wrote(&mut self, len: u64, took: Duration, now: Duration) -> Duration {
        let pause = match len.saturating_mul(1_000_000_000).checked_div(self.rate) {
            None => took * (100 - SHARE) / SHARE,
            Some(nanos) => {
                // What was saved up while something else was slow is no credit.
                let due = self.due.unwrap_or(now).max(now.saturating_sub(Duration::from_millis(100)));
                let due = due + Duration::from_nanos(nanos);
                self.due = Some(due);
                due.saturating_sub(now)
            }
        };
        pause.min(WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Writes 64 MiB in pieces, each of which takes the disk this long; how long it all takes.
    fn run(rate: u64, took: Duration) -> f64 {
        let mut throttle = Throttle::new(rate);
        let mut now = Duration::from_secs(1);
        for _ in 0..256 {
            now += took;
            now += throttle.wrote(MIB / 4, took, now);
        }
        (now - Duration::from_secs(1)).as_secs_f64()
    }

    #[test]
    fn a_clone_takes_thirty_percent_of_the_disk_by_itself() {
        let alone = 256.0 * 0.003;
        let took = run(0, Duration::from_millis(3));
        assert!((took / alone - 100.0 / 30.0).abs() < 0.05, "{took}");
    }

    #[test]
    fn a_chosen_rate_is_kept_whatever_the_disk_could_do() {
        for millis in [0, 2, 10] {
            let took = run(16 * MIB, Duration::from_millis(millis));
            assert!((3.9..4.2).contains(&took), "64 MiB at 16 MiB/s: {took} s");
        }
        assert!(run(16 * MIB, Duration::from_millis(50)) < 13.5, "a slow disk is not slowed down further");
    }
}
