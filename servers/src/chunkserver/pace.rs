//! How fast a disk is scrubbed. Pure: how far the pass is, what time it is, how busy the shard is; out
//! comes whether to read the next piece now, or when to ask again.

use std::time::Duration;

/// Bytes of one piece.
pub(crate) const PIECE: u32 = 256 << 10;

/// Never more from one disk, bytes per second, however late it is.
const RATE_MAX: u64 = 64 << 20;

/// The shard has nothing to do when no request came for so long.
const QUIET: Duration = Duration::from_millis(20);

/// A shard that always has work still lets a piece through in this time once the pass is late.
const BUSY_GAP: Duration = Duration::from_millis(250);

/// Late: behind by this part of the period.
const LATE_PART: u32 = 10;

/// Chunks come and go: the plan is looked at again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// One pass over everything that a shard has on one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    /// When it began.
    pub(crate) since: Duration,
    /// Bytes read.
    pub(crate) done: u64,
    /// Bytes there were when it began.
    pub(crate) total: u64,
    /// When a piece was last read.
    pub(crate) last: Duration,
    /// Somebody asked for it: no plan, only the limits.
    pub(crate) is_asked: bool,
}

/// What else the shard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Requests without an answer.
    pub(crate) in_flight: usize,
    /// Since the last one came.
    pub(crate) quiet_for: Duration,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read a piece.
    Read,
    /// Ask again after this.
    Wait(Duration),
}

/// Decides. `every`: time for a pass; `shards` share the disk.
pub(crate) fn step(every: Duration, shards: u32, pass: &Pass, load: Load, now: Duration) -> Step {
    let gap = Duration::from_secs(u64::from(PIECE) * u64::from(shards.max(1))) / u32::try_from(RATE_MAX).unwrap_or(1);
    let until = |at: Duration| (at > now).then(|| Step::Wait((at - now).min(LOOK_AGAIN)));
    let planned = planned(every, pass);
    if !pass.is_asked
        && let Some(wait) = until(planned)
    {
        return wait;
    }
    if let Some(wait) = until(pass.last + gap) {
        return wait;
    }
    let is_busy = load.in_flight > 0 || load.quiet_for < QUIET;
    if !is_busy {
        return Step::Read;
    }
    let is_late = pass.is_asked || now.saturating_sub(planned) > every / LATE_PART;
    match until(pass.last + BUSY_GAP.max(gap)) {
        None if is_late => Step::Read,
        _ => Step::Wait(QUIET),
    }
}

/// When the next piece is due: pieces are spread evenly over the period.
fn planned(every: Duration, pass: &Pass) -> Duration {
    let part = u128::from(pass.done) * every.as_nanos() / u128::from(pass.total.max(1));
    pass.since + Duration::from_nanos(u64::try_from(part).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const IDLE: Load = Load { in_flight: 0, quiet_for: DAY };
    const BUSY: Load = Load { in_flight: 1, quiet_for: Duration::ZERO };

    /// Lives through a pass; gives how long it took and the longest gap.
    fn run(every: Duration, total: u64, is_asked: bool, load: impl Fn(Duration) -> Load) -> (Duration, u64) {
        let mut pass = Pass { total, is_asked, ..Pass::default() };
        let (mut now, mut steps) = (Duration::from_millis(1), 0);
        while pass.done < total {
            steps += 1;
            match step(every, 1, &pass, load(now), now) {
                Step::Read => {
                    pass.done += u64::from(PIECE);
                    pass.last = now;
                }
                Step::Wait(wait) => {
                    assert!(wait > Duration::ZERO && wait <= LOOK_AGAIN);
                    now += wait;
                }
            }
        }
        (now, steps)
    }

    #[test]
    fn a_pass_is_spread_over_its_period_and_ends_in_it() {
        let (took, _) = run(DAY, 1 << 30, false, |_| IDLE);
        assert!(took < DAY && took > DAY * 9 / 10, "{took:?}");
    }

    #[test]
    fn a_disk_that_is_late_or_asked_for_is_read_no_faster_than_the_limit() {
        let total = 1 << 30;
        for (every, is_asked) in [(Duration::from_secs(1), false), (DAY, true)] {
            let (took, _) = run(every, total, is_asked, |_| IDLE);
            let least = Duration::from_secs(total / RATE_MAX);
            assert!(took >= least * 99 / 100 && took < least * 11 / 10, "{took:?}");
        }
        let pass = Pass { last: DAY, is_asked: true, total: 1, ..Pass::default() };
        let wait = |shards| match step(DAY, shards, &pass, IDLE, DAY) {
            Step::Wait(wait) => wait,
            Step::Read => Duration::ZERO,
        };
        assert_eq!(wait(8), wait(1) * 8, "shards share the rate");
    }

    #[test]
    fn requests_come_first_until_the_pass_is_late() {
        let pass = Pass { total: 100, ..Pass::default() };
        assert_eq!(step(DAY, 1, &pass, IDLE, Duration::from_secs(1)), Step::Read);
        assert_eq!(step(DAY, 1, &pass, BUSY, Duration::from_secs(1)), Step::Wait(QUIET));
        let just = Load { in_flight: 0, quiet_for: Duration::from_millis(19) };
        assert_eq!(step(DAY, 1, &pass, just, Duration::from_secs(1)), Step::Wait(QUIET));
        assert_eq!(step(DAY, 1, &pass, BUSY, DAY / 9), Step::Read);
        let read = Pass { last: DAY / 9, ..pass };
        assert_eq!(
            step(DAY, 1, &read, BUSY, DAY / 9 + Duration::from_millis(100)),
            Step::Wait(QUIET),
            "one in a while"
        );
        assert_eq!(step(DAY, 1, &read, BUSY, DAY / 9 + BUSY_GAP), Step::Read);
    }

    #[test]
    fn a_server_that_is_never_idle_is_scrubbed_all_the_same() {
        let (took, _) = run(DAY, 1 << 30, false, |_| BUSY);
        assert!(took < DAY + DAY / 5, "{took:?}");
    }

    #[test]
    fn waiting_costs_next_to_nothing() {
        let (_, steps) = run(DAY * 14, 64 << 20, false, |_| IDLE);
        assert!(steps < 14 * 24 * 60 + 1000, "one look a minute: {steps}");
    }
}
