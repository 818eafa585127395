//! How to reach a cluster.

use std::time::Duration;

use wire::ClusterKey;
use wire::limits::{PAYLOAD_LEN_MAX, WINDOW_LEN_MAX};

/// No deadline is longer. An operation may be repeated for twice as long (a later one of its stream
/// still waits), and servers forget silent streams after 20 minutes.
const DEADLINE_MAX: Duration = Duration::from_secs(5 * 60);

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// `host:port` of each master.
    pub masters: Vec<String>,
    /// How long one call may take in all, repeats included; an upload or a read: how long it may go
    /// without any progress. Default 30 s, at most 5 min.
    pub deadline: Duration,
    /// Bytes one upload may have unacknowledged, 1 to 32 MiB. Default 32 MiB.
    pub window: usize,
    /// Bytes one read may be ahead of its reader, at least 1 MiB. Default 8 MiB.
    pub read_window: usize,
    /// What both sides of every connection prove. Without it only clusters without a key are reached, with
    /// it only those that have the same. Default none.
    pub cluster_key: Option<ClusterKey>,
}

impl Config {
    /// Defaults for these masters.
    #[must_use]
    pub fn new(masters: Vec<String>) -> Self {
        Self { masters, deadline: Duration::from_secs(30), window: 32 << 20, read_window: 8 << 20, cluster_key: None }
    }

    /// The same with every value inside its limits.
    pub(crate) fn bounded(mut self) -> Self {
        let window_max = usize::try_from(WINDOW_LEN_MAX).unwrap_or(usize::MAX);
        let piece = PAYLOAD_LEN_MAX as usize;
        self.deadline = self.deadline.min(DEADLINE_MAX);
        self.window = self.window.clamp(piece, window_max);
        self.read_window = self.read_window.clamp(piece, 64 * piece);
        self
    }
}
