//! Where chunks are: per file, as far as it is known and not expired.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use wire::InodeId;
use wire::locate::{Location, Locations};
use wire::member::ChunkState;

use crate::bounded::Bounded;
use crate::lock;

/// Files remembered, and chunks of each: past that a file's chunks are forgotten and asked for again.
const FILES_MAX: usize = 512;
const CHUNKS_MAX: usize = 1024;

/// The cache of one client.
#[derive(Debug)]
pub(crate) struct LocationCache(Mutex<Bounded<InodeId, FileMap>>);

impl Default for LocationCache {
    fn default() -> Self {
        Self(Mutex::new(Bounded::new(FILES_MAX)))
    }
}

impl LocationCache {
    /// The chunk that holds this byte, as of `version` of the file or later.
    pub(crate) fn find(&self, file: InodeId, version: u64, offset: u64, now: Instant) -> Option<Arc<Location>> {
        lock(&self.0).get(&file).filter(|map| map.version >= version)?.find(offset, now)
    }

    /// Remembers one page.
    pub(crate) fn insert(&self, file: InodeId, version: u64, items: &[Arc<Location>], now: Instant) {
        let mut files = lock(&self.0);
        if let Some(map) = files.get(&file) {
            map.insert(version, items, now);
        } else {
            let mut map = FileMap::default();
            map.insert(version, items, now);
            files.insert(file, map);
        }
    }

    /// What is known about this file is outdated.
    pub(crate) fn forget(&self, file: InodeId) {
        lock(&self.0).remove(&file);
    }
}

/// Chunks of one version of a file by the file offset of their first byte: a map from prefix sums.
#[derive(Debug, Default)]
struct FileMap {
    version: u64,
    by_start: BTreeMap<u64, (Instant, Arc<Location>)>,
}

impl FileMap {
    fn find(&self, offset: u64, now: Instant) -> Option<Arc<Location>> {
        let (_, (expires, location)) = self.by_start.range(..=offset).next_back()?;
        (now < *expires && offset < end_of(location)).then(|| Arc::clone(location))
    }

    fn insert(&mut self, version: u64, items: &[Arc<Location>], now: Instant) {
        if version < self.version {
            return;
        }
        if version > self.version || self.by_start.len() + items.len() > CHUNKS_MAX {
            self.by_start.clear();
            self.version = version;
        }
        for location in items.iter().filter(|location| end_of(location) > location.start) {
            let expires = now + Duration::from_millis(location.expire_ms.into());
            self.by_start.insert(location.start, (expires, Arc::clone(location)));
        }
    }
}

/// File offset after the last byte of a chunk; unknown, so without bound, until that is final.
pub(crate) fn end_of(location: &Location) -> u64 {
    if has_end(location.state) { location.start + u64::from(location.len) } else { u64::MAX }
}

/// Whether a chunk in this state has its final length.
pub(crate) fn has_end(state: ChunkState) -> bool {
    matches!(state, ChunkState::Sealed | ChunkState::Reopened)
}

/// Whether a page can be believed: it starts with the chunk that holds `offset`, and each chunk begins
/// where the one before it ends.
pub(crate) fn is_contiguous(page: &Locations, offset: u64) -> bool {
    let first = page.items.first();
    let holds = first.is_some_and(|first| first.start <= offset && offset < end_of(first));
    holds && page.items.iter().zip(page.items.iter().skip(1)).all(|(one, next)| end_of(one) == next.start)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use wire::member::Member;
    use wire::{ChunkHandle, Epoch, ServerId};

    pub(crate) fn location(chunk: u64, start: u64, len: u32, state: ChunkState) -> Location {
        let member = |server| Member { server: ServerId(server), address: format!("s{server}:1"), shards: 1 };
        Location {
            file: InodeId(9),
            index: 0,
            start,
            chunk: ChunkHandle(chunk),
            state,
            epoch: Epoch(1),
            len,
            members: vec![member(1), member(2), member(3)],
            expire_ms: 1000,
        }
    }

    fn page(parts: &[(u64, u32, ChunkState)]) -> Vec<Arc<Location>> {
        let numbered = (1..).zip(parts);
        numbered.map(|(chunk, (start, len, state))| Arc::new(location(chunk, *start, *len, *state))).collect()
    }

    #[test]
    fn each_offset_belongs_to_the_chunk_whose_prefix_sums_hold_it() {
        use ChunkState::{Open, Sealed};
        let (cache, now, file) = (LocationCache::default(), crate::clock::now(), InodeId(9));
        cache.insert(file, 5, &page(&[(0, 10, Sealed), (10, 0, Sealed), (10, 20, Sealed), (30, 7, Open)]), now);
        let chunk = |offset| cache.find(file, 5, offset, now).map(|location| location.chunk.0);
        assert_eq!((chunk(0), chunk(9), chunk(10), chunk(29)), (Some(1), Some(1), Some(3), Some(3)));
        assert_eq!((chunk(30), chunk(1 << 40)), (Some(4), Some(4)), "an open chunk has no known end");
    }

    #[test]
    fn what_is_unknown_expired_or_of_an_older_version_is_asked_for_again() {
        let (cache, now, file) = (LocationCache::default(), crate::clock::now(), InodeId(9));
        let sealed = page(&[(10, 10, ChunkState::Sealed)]);
        cache.insert(file, 5, &sealed, now);
        assert!(cache.find(file, 5, 10, now).is_some());
        assert!(cache.find(file, 5, 9, now).is_none(), "before what is known");
        assert!(cache.find(file, 5, 20, now).is_none(), "after what is known");
        assert!(cache.find(file, 6, 10, now).is_none(), "the caller knows a newer version");
        assert!(cache.find(file, 5, 10, now + Duration::from_secs(1)).is_none(), "expired");
        cache.insert(file, 6, &page(&[(20, 5, ChunkState::Sealed)]), now);
        assert!(cache.find(file, 5, 10, now).is_none(), "chunks of two versions are never mixed");
        cache.insert(file, 5, &sealed, now);
        assert!(cache.find(file, 5, 10, now).is_none(), "a late answer does not bring old chunks back");
        cache.forget(file);
        assert!(cache.find(file, 6, 20, now).is_none());
    }

    #[test]
    fn a_page_with_a_gap_or_from_elsewhere_is_not_believed() {
        let check = |parts: &[(u64, u32, ChunkState)], offset| {
            let items = page(parts).iter().map(|location| Location::clone(location)).collect();
            is_contiguous(&Locations { items, version: 1, chunk_count: 9 }, offset)
        };
        use ChunkState::{Open, Sealed};
        assert!(check(&[(0, 10, Sealed), (10, 5, Open)], 3));
        assert!(!check(&[(0, 10, Sealed), (11, 5, Open)], 3));
        assert!(!check(&[(0, 10, Sealed)], 10));
        assert!(!check(&[(4, 10, Sealed)], 3));
        assert!(!check(&[], 0));
    }
}
