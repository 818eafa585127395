//! Counters of a client, beside what they count.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the client did since it was made, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Attempts that were repeated: master calls, operations sent again, rounds over all replicas.
    pub retries: u64,
    /// Reads that went to another replica after one failed.
    pub failovers: u64,
    /// Replies whose checksums did not match, and blocks that a server reported bad.
    pub corrupt_replies: u64,
    /// Troubles reported to the master.
    pub reports: u64,
    /// Verified bytes handed to readers.
    pub bytes_read: u64,
    /// Bytes acknowledged as durable on every replica.
    pub bytes_written: u64,
    /// Servers seen to have restarted between two connections.
    pub restarts_seen: u64,
}

macro_rules! counters {
    ($($name:ident),*) => {
        /// The living side of [`Stats`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters!(retries, failovers, corrupt_replies, reports, bytes_read, bytes_written, restarts_seen);

/// Counts up from many threads.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
