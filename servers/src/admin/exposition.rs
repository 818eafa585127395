//! Prometheus text, version 0.0.4: `# HELP`, `# TYPE`, samples.

use std::fmt::Write as _;
use std::time::Duration;

/// Exposition text under construction. Each family is written whole, once.
#[derive(Debug, Default)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// A counter without labels. `name` ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, [([], value)]);
    }

    /// A counter with one sample per set of labels.
    pub fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, String); N], u64)>,
    ) {
        self.family(name, help, "counter");
        for (labels, value) in samples {
            self.sample(name, &labels, &value.to_string());
        }
    }

    /// A counter of seconds, with its fraction.
    pub fn seconds_total(&mut self, name: &str, help: &str, value: Duration) {
        self.family(name, help, "counter");
        self.sample(name, &[], &value.as_secs_f64().to_string());
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, [([], value)]);
    }

    /// A gauge with one sample per set of labels.
    pub fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, String); N], f64)>,
    ) {
        self.family(name, help, "gauge");
        for (labels, value) in samples {
            self.sample(name, &labels, &value.to_string());
        }
    }

    /// A histogram of durations in seconds. `name` ends in `_seconds`.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, help, "histogram");
        let mut below = 0;
        for (count, bound) in histogram.counts.iter().zip(BOUNDS_US) {
            below += count;
            let seconds = Duration::from_micros(bound).as_secs_f64();
            self.sample(&format!("{name}_bucket"), &[("le", seconds.to_string())], &below.to_string());
        }
        self.sample(&format!("{name}_bucket"), &[("le", "+Inf".into())], &histogram.count().to_string());
        self.sample(&format!("{name}_sum"), &[], &histogram.sum.as_secs_f64().to_string());
        self.sample(&format!("{name}_count"), &[], &histogram.count().to_string());
    }

    /// The text.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }

    fn family(&mut self, name: &str, help: &str, kind: &str) {
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, String)], value: &str) {
        self.text.push_str(name);
        for (position, (label, text)) in labels.iter().enumerate() {
            let open = if position == 0 { '{' } else { ',' };
            let text = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.text, "{open}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// Upper bounds of the buckets, microseconds: from a cache hit to a stuck disk.
const BOUNDS_US: [u64; 17] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// Durations, counted in fixed buckets. Plain integers: one owner, no lock.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: [u64; BOUNDS_US.len()],
    over: u64,
    sum: Duration,
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let bucket = BOUNDS_US.partition_point(|bound| Duration::from_micros(*bound) < took);
        *self.counts.get_mut(bucket).unwrap_or(&mut self.over) += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// Adds another one's counts: how shards are summed up.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.over += other.over;
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_their_bounds_inclusive() {
        let mut histogram = Histogram::default();
        for us in [50, 51, 20_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        let mut out = Metrics::default();
        out.histogram("x_seconds", "X.", &twice);
        let text = out.finish();
        for line in [
            "# TYPE x_seconds histogram",
            "x_seconds_bucket{le=\"0.00005\"} 2",
            "x_seconds_bucket{le=\"0.0001\"} 4",
            "x_seconds_bucket{le=\"10\"} 4",
            "x_seconds_bucket{le=\"+Inf\"} 6",
            "x_seconds_count 6",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        let mut out = Metrics::default();
        out.gauges("x", "a\nb", [([("zone", "a\"b\\c\nd".to_owned())], 1.5)]);
        assert_eq!(out.finish(), "# HELP x a\\nb\n# TYPE x gauge\nx{zone=\"a\\\"b\\\\c\\nd\"} 1.5\n");
    }
}
