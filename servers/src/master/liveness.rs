//! Is a server alive? Phi-accrual over the arrival of its heartbeats (Hayashibara et al., 2004): how
//! unlikely is a silence as long as this one, judged by how regular the server has been. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use wire::heartbeat::Liveness;

/// Suspect from here on: a silence this long is a chance of one in a hundred million.
pub const PHI_SUSPECT: f64 = 8.0;
/// Intervals remembered.
const WINDOW: usize = 64;
/// What is assumed of a server not heard of before.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// A server is never held to more regularity than this: one pause of a busy machine is no failure.
const DEVIATION_MIN: f64 = 0.5;

/// Heartbeats of one server.
#[derive(Clone, Debug)]
pub struct Arrivals {
    last: Duration,
    intervals: VecDeque<Duration>,
}

impl Arrivals {
    /// Heard for the first time.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { last: now, intervals: VecDeque::from([FIRST_INTERVAL]) }
    }

    /// Heard again.
    pub fn heard(&mut self, now: Duration) {
        if self.intervals.len() == WINDOW {
            self.intervals.pop_front();
        }
        self.intervals.push_back(now.saturating_sub(self.last));
        self.last = now;
    }

    /// How long it has been silent.
    #[must_use]
    pub fn silent(&self, now: Duration) -> Duration {
        now.saturating_sub(self.last)
    }

    /// `-log10` of the chance that a server which is well is silent for this long.
    #[must_use]
    pub fn phi(&self, now: Duration) -> f64 {
        let count = self.intervals.iter().fold(0.0, |count, _| count + 1.0);
        let mean = self.intervals.iter().map(Duration::as_secs_f64).sum::<f64>() / count;
        let variance = self.intervals.iter().map(|each| (each.as_secs_f64() - mean).powi(2)).sum::<f64>() / count;
        let deviation = variance.sqrt().max(DEVIATION_MIN);
        let y = (self.silent(now).as_secs_f64() - mean) / deviation;
        // The tail of the normal distribution by its logistic approximation, good to 10^-4.
        let e = (-y * (1.5976 + 0.070_566 * y * y)).exp();
        if y > 0.0 { -(e / (1.0 + e)).log10() } else { -(1.0 - 1.0 / (1.0 + e)).log10() }
    }

    /// Alive, suspect or dead.
    #[must_use]
    pub fn liveness(&self, now: Duration, dead_after: Duration) -> Liveness {
        if self.silent(now) > dead_after {
            Liveness::Dead
        } else if self.phi(now) >= PHI_SUSPECT {
            Liveness::Suspect
        } else {
            Liveness::Alive
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD: Duration = Duration::from_secs(30);

    fn regular(interval: Duration, count: u32) -> (Arrivals, Duration) {
        let mut arrivals = Arrivals::new(Duration::ZERO);
        (1..=count).for_each(|number| arrivals.heard(interval * number));
        (arrivals, interval * count)
    }

    #[test]
    fn a_regular_server_is_suspected_after_a_few_seconds_and_dead_at_the_limit() {
        let (arrivals, now) = regular(Duration::from_secs(1), 60);
        let after = |ms| arrivals.liveness(now + Duration::from_millis(ms), DEAD);
        assert_eq!(after(1500), Liveness::Alive);
        assert_eq!(after(2500), Liveness::Alive);
        assert_eq!(after(5000), Liveness::Suspect);
        assert_eq!(after(30_000), Liveness::Suspect);
        assert_eq!(after(30_001), Liveness::Dead);
    }

    #[test]
    fn an_irregular_server_gets_more_time_than_a_regular_one() {
        let mut wild = Arrivals::new(Duration::ZERO);
        let mut now = Duration::ZERO;
        for number in 0..60 {
            now += Duration::from_millis(if number % 2 == 0 { 200 } else { 3800 });
            wild.heard(now);
        }
        assert_eq!(wild.liveness(now + Duration::from_secs(5), DEAD), Liveness::Alive);
        let (regular, now) = regular(Duration::from_secs(2), 60);
        assert_eq!(regular.liveness(now + Duration::from_secs(6), DEAD), Liveness::Suspect);
    }

    #[test]
    fn phi_only_grows_with_silence_and_one_heartbeat_ends_it() {
        let (mut arrivals, now) = regular(Duration::from_secs(1), 5);
        let phis: Vec<_> = (0..200).map(|step| arrivals.phi(now + Duration::from_millis(step * 50))).collect();
        assert!(phis.is_sorted(), "{phis:?}");
        arrivals.heard(now + Duration::from_secs(9));
        assert_eq!(arrivals.liveness(now + Duration::from_secs(9), DEAD), Liveness::Alive);
    }
}
