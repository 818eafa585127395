//! First answers to requests, and inherited dedup tables: both remembered for as long as a client
//! may repeat itself, and bounded in number.

use wire::{DedupEntry, InodeId, RequestId};

use super::{Remembered, State, Streams};
use crate::canary::weakened;
use crate::master::entry::{Answer, Lsn};

/// A client repeats a request for at most ten minutes; twice that forgives clocks.
const KEEP_MS: u64 = 20 * 60 * 1000;
/// Most remembered requests of one client: one that asks more often than this in [`KEEP_MS`] loses its oldest.
const CLIENT_MAX: usize = 50_000;
/// Most remembered requests in all, about 100 MB.
const REQUESTS_MAX: usize = 300_000;
/// Most inherited dedup tables.
const STREAMS_MAX: usize = 300_000;
/// Rows forgotten with each entry at most: more than an entry adds, so that the backlog shrinks.
const FORGET_STEP: usize = 4;

impl State {
    /// The first answer to a request, if it was made before.
    #[must_use]
    pub fn remembered(&self, request: RequestId) -> Option<&Answer> {
        self.requests.get(&(request.client, request.number)).map(|remembered| &remembered.answer)
    }

    /// The dedup table that the next chunk of a file inherits.
    #[must_use]
    pub fn inherited(&self, file: InodeId) -> Vec<DedupEntry> {
        if weakened!(NotInherited) {
            return Vec::new();
        }
        self.streams.get(&file).map(|streams| streams.dedup.clone()).unwrap_or_default()
    }

    pub(super) fn remember(&mut self, lsn: Lsn, at_ms: u64, request: RequestId, answer: &Answer) {
        let key = (request.client, request.number);
        let remembered = Remembered { lsn, at_ms, answer: answer.clone() };
        assert!(self.requests.insert(key, remembered).is_none(), "a request is applied once");
        self.derived.request_age.insert((lsn, key));
        let count = self.derived.request_count.entry(key.0).or_default();
        *count += 1;
        if *count > CLIENT_MAX {
            let oldest = self.requests.range((key.0, 0)..).next().map(|(key, _)| *key);
            oldest.into_iter().for_each(|key| self.forget_request(key));
        }
    }

    /// Replaces the table of a file; an empty one is none.
    pub(super) fn inherit(&mut self, file: InodeId, since_ms: u64, dedup: &[DedupEntry]) {
        if let Some(old) = self.streams.remove(&file) {
            self.derived.stream_age.remove(&(old.since_ms, file));
        }
        if !dedup.is_empty() {
            self.streams.insert(file, Streams { since_ms, dedup: dedup.to_vec() });
            self.derived.stream_age.insert((since_ms, file));
        }
    }

    /// Drops what nobody can ask for any more, by the age of the state.
    pub(super) fn forget(&mut self, now_ms: u64) {
        for _ in 0..FORGET_STEP {
            let Some((_, key)) = self.derived.request_age.first().copied() else { break };
            let old = self.requests.get(&key).is_none_or(|row| row.at_ms.saturating_add(KEEP_MS) < now_ms);
            if !old && self.requests.len() <= REQUESTS_MAX {
                break;
            }
            self.forget_request(key);
        }
        for _ in 0..FORGET_STEP {
            let Some((since_ms, file)) = self.derived.stream_age.first().copied() else { break };
            if since_ms.saturating_add(KEEP_MS) >= now_ms && self.streams.len() <= STREAMS_MAX {
                break;
            }
            self.inherit(file, since_ms, &[]);
        }
    }

    fn forget_request(&mut self, key: ([u8; 16], u64)) {
        let Some(row) = self.requests.remove(&key) else { return };
        self.derived.request_age.remove(&(row.lsn, key));
        if let Some(count) = self.derived.request_count.get_mut(&key.0) {
            *count -= 1;
            if *count == 0 {
                self.derived.request_count.remove(&key.0);
            }
        }
    }
}
