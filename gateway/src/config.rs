//! What a gateway is told when it starts, and every bound it keeps.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How a gateway runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Default `0.0.0.0:8089`; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// `host:port` of each master; at least one.
    pub masters: Vec<String>,
    /// How long one call to the cluster may take in all, repeats included. Default 30 s.
    pub deadline: Duration,
    /// Bytes one upload may have unacknowledged: with [`Limits::read_buffer_bytes`] the memory of one
    /// upload. Default 4 MiB, which at a flush of 5 ms is still 800 MiB/s.
    pub window: usize,
    /// Bytes one download may be ahead of its client: the memory of one download. Default 4 MiB.
    pub read_window: usize,
    /// What both sides of every connection to the cluster prove; `None` for a cluster without a key. Default none.
    pub cluster_key: Option<wire::ClusterKey>,
    /// Every other bound.
    pub limits: Limits,
}

impl Config {
    /// Defaults for these masters.
    #[must_use]
    pub fn new(masters: Vec<String>) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8089)),
            masters,
            deadline: Duration::from_secs(30),
            window: 4 << 20,
            read_window: 4 << 20,
            cluster_key: None,
            limits: Limits::default(),
        }
    }
}

/// What one client, and all together, may use. Each field says what happens beyond it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Request line and header, bytes. Beyond: 431. Default 16 KiB.
    pub header_bytes: usize,
    /// Header fields. Beyond: 431. Default 100.
    pub header_fields: usize,
    /// For a whole request header to arrive, the wait on an idle connection included. Beyond: closed. Default 10 s.
    pub header_timeout: Duration,
    /// Open connections. Beyond: 503 and closed. Default 4,096.
    pub connections: usize,
    /// Requests in progress, those of operators (health, metrics) apart. Beyond: 503. Default 1,024.
    pub requests: usize,
    /// Between two pieces of a request body. Beyond: 408. Default 60 s.
    pub body_idle: Duration,
    /// Bytes per second a request body must average, the time the cluster makes it wait apart, once
    /// [`Limits::body_grace`] is over. Beyond: 408. Default 1 KiB/s.
    pub body_rate_min: u64,
    /// How long a request body may be slower than [`Limits::body_rate_min`]. Default 20 s.
    pub body_grace: Duration,
    /// How long a client may take nothing of an answer. Beyond: closed. Default 60 s.
    pub write_idle: Duration,
    /// A JSON request body, bytes. Beyond: 413. Default 1 MiB.
    pub json_bytes: usize,
    /// One append, bytes; never above 16 MiB. Beyond: 413. Default 16 MiB.
    pub append_bytes: usize,
    /// What a write in place hands to the cluster at a time, bytes: a longer body goes in several steps.
    /// Default 64 MiB, one chunk: the cluster rewrites whole chunks, and each step at a file's end makes one.
    pub write_bytes: usize,
    /// Bytes of all request bodies that must be held whole (appends, writes in place). Beyond: a short
    /// wait, then 503. Default 512 MiB.
    pub whole_bytes: usize,
    /// A whole file, bytes. Beyond: 413. Default: no bound.
    pub file_bytes: u64,
    /// Entries of one page of a listing; never above 1,000. Default 1,000.
    pub page_entries: u32,
    /// Ranges of one request. Beyond: the whole file is sent. Default 16.
    pub ranges: usize,
    /// Buffer of one connection, bytes: the largest piece of a request body, and what an answer may have
    /// buffered. At least 64 KiB. Default 1 MiB.
    pub read_buffer_bytes: usize,
    /// How long [`crate::Running::stop`] waits for requests in progress. Default 30 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 16 << 10,
            header_fields: 100,
            header_timeout: Duration::from_secs(10),
            connections: 4096,
            requests: 1024,
            body_idle: Duration::from_secs(60),
            body_rate_min: 1 << 10,
            body_grace: Duration::from_secs(20),
            write_idle: Duration::from_secs(60),
            json_bytes: 1 << 20,
            append_bytes: wire::limits::APPEND_LEN_MAX as usize,
            write_bytes: wire::limits::CHUNK_SIZE as usize,
            whole_bytes: 512 << 20,
            file_bytes: u64::MAX,
            page_entries: wire::limits::PAGE_ENTRIES_MAX,
            ranges: 16,
            read_buffer_bytes: 1 << 20,
            drain: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// The same, with what the cluster could not accept brought back into its bounds.
    pub(crate) fn within_bounds(mut self) -> Self {
        self.append_bytes = self.append_bytes.min(wire::limits::APPEND_LEN_MAX as usize);
        self.page_entries = self.page_entries.clamp(1, wire::limits::PAGE_ENTRIES_MAX);
        self.write_bytes = self.write_bytes.max(1);
        self.whole_bytes = self.whole_bytes.max(self.append_bytes).max(self.write_bytes);
        self.read_buffer_bytes = self.read_buffer_bytes.max(64 << 10).max(self.header_bytes);
        self
    }
}
