use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn page(seed: u64) -> Page {
    let mut page = [0; PAGE];
    page[..8].copy_from_slice(&seed.to_le_bytes());
    page
}

fn seed(page: &Page) -> u64 {
    u64::from_le_bytes(*page.first_chunk().unwrap())
}

/// Reads a block as the store does: from the cache, else it is put there.
fn read(cache: &mut BlockCache, generation: u64, block: u32, came: Came) -> bool {
    let hit = cache.get(Name::new(generation, block)).is_some();
    if !hit {
        cache.put(generation, block, &[page(1)], &[1], came);
    }
    hit
}

/// Every link, count and place agrees with every other.
fn check(cache: &BlockCache) {
    assert!(cache.held() <= cache.room * PAGE);
    assert!(cache.entries.len() <= cache.room, "places of blocks that are gone are used again");
    assert_eq!(cache.small.len + cache.main.len, cache.by_name.len());
    assert_eq!(cache.by_name.len() + cache.unused.len(), cache.entries.len());
    assert!(cache.ghost.order.len() <= cache.room && cache.ghost.names.len() <= cache.room);
    for (fifo, queue) in [(&cache.small, Queue::Small), (&cache.main, Queue::Main)] {
        let (mut at, mut before, mut count) = (fifo.oldest, NONE, 0);
        while at != NONE {
            let entry = &cache.entries[at as usize];
            assert_eq!((entry.older, entry.queue, cache.by_name[&entry.name]), (before, queue, at));
            (before, at, count) = (at, entry.newer, count + 1);
        }
        assert_eq!((fifo.newest, fifo.len), (before, count));
    }
}

#[test]
fn nothing_is_held_without_room_for_a_block() {
    for bytes in [0, PAGE - 1] {
        let mut cache = BlockCache::new(bytes);
        assert!(cache.is_off());
        assert!(!read(&mut cache, 1, 1, Came::Alone) && !read(&mut cache, 1, 1, Came::Alone));
        assert_eq!(cache.held(), 0);
    }
}

#[test]
fn names_of_blocks_and_pieces_are_all_different() {
    let last = u32::try_from(CHUNK_BLOCKS).unwrap() - 1;
    let mut names: Vec<Name> = Vec::new();
    for generation in 1..4 {
        for block in [0, 1, 15, 16, last - 1, last] {
            names.push(Name::new(generation, block));
        }
        names.push(Name::new(generation, 0).piece());
        names.push(Name::new(generation, last).piece());
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert_eq!(Name::new(2, 16).piece(), Name::new(2, 31).piece());
    assert_ne!(Name::new(2, 15).piece(), Name::new(2, 16).piece());
}

#[test]
fn a_scan_enters_when_it_comes_again() {
    let pages = vec![page(3); 64];
    let scanned = Came::Scanned { end: 69 };
    for count in [1, 5, 16, 61] {
        let mut cache = BlockCache::new(1000 * PAGE);
        let pass = |cache: &mut BlockCache| {
            for at in (8..69).step_by(count) {
                let count = count.min(69 - at as usize);
                cache.put(1, at, &pages[..count], &[0; 64][..count], scanned);
            }
        };
        pass(&mut cache);
        assert_eq!(cache.held(), 0, "in steps of {count}");
        cache.put(1, 20, &pages[..2], &[0; 2], scanned);
        assert_eq!(cache.held(), 2 * PAGE, "what comes again, not its neighbours");
        cache.put(2, 20, &pages[..8], &[0; 8], scanned);
        assert_eq!(cache.held(), 2 * PAGE, "another chunk is another name");
        pass(&mut cache);
        assert_eq!(cache.held(), 61 * PAGE, "the second pass takes all of it");
        check(&cache);
    }
}

#[test]
fn what_was_pushed_out_and_comes_again_goes_to_the_main_queue() {
    let mut cache = BlockCache::new(10 * PAGE);
    for block in 0..11 {
        read(&mut cache, 1, block, Came::Alone);
    }
    assert!(!cache.has(Name::new(1, 0)));
    assert!(!read(&mut cache, 1, 0, Came::Alone));
    assert_eq!((cache.main.len, cache.tally.evictions), (1, 2));
    check(&cache);
}

proptest! {
    /// Against a model that never forgets: a block is absent or as it was put last, and never more than
    /// the bound is held.
    #[test]
    fn what_is_held_is_what_was_put_last(
        room in 1_usize..40,
        steps in vec((0_u8..6, 1_u64..3, 0_u32..60, 1_usize..20), 1..400),
    ) {
        let mut cache = BlockCache::new(room * PAGE);
        let mut model = BTreeMap::new();
        for (step, (what, generation, block, count)) in (0_u32..).zip(steps) {
            match what {
                0 => {
                    cache.remove(Name::new(generation, block));
                    model.remove(&(generation, block));
                    assert!(!cache.has(Name::new(generation, block)));
                }
                1 | 2 => {
                    let came = if what == 1 { Came::Alone } else { Came::Scanned { end: 60 } };
                    let pages: Vec<Page> = (0..count as u64).map(|at| page(u64::from(step) * 100 + at)).collect();
                    let crcs: Vec<u32> = (0..).take(count).map(|at| step * 100 + at).collect();
                    // As the store does it: what changed was removed first.
                    for (at, crc) in (block..).zip(&crcs) {
                        cache.remove(Name::new(generation, at));
                        model.insert((generation, at), *crc);
                    }
                    cache.put(generation, block, &pages, &crcs, came);
                }
                _ => {
                    if let Some((bytes, crc)) = cache.get(Name::new(generation, block)) {
                        assert_eq!(Some(&crc), model.get(&(generation, block)));
                        assert_eq!(seed(bytes), u64::from(crc));
                    }
                }
            }
            check(&cache);
        }
    }

    /// However long a scan is and whatever its order, a working set that was read twice stays.
    #[test]
    fn a_scan_pushes_out_nothing_that_was_read_twice(
        room in 20_u32..200,
        times in 1_u32..8,
        single in any::<bool>(),
        stride in prop::sample::select(vec![1_u32, 3, 7]),
    ) {
        let mut cache = BlockCache::new(room as usize * PAGE);
        let set = room * 8 / 10;
        for _ in 0..2 {
            (0..set).for_each(|block| { read(&mut cache, 1, block, Came::Alone); });
        }
        let length = room * times;
        for block in (0..stride).flat_map(|from| (from..length).step_by(stride as usize)) {
            read(&mut cache, 2, block, if single { Came::Alone } else { Came::Scanned { end: length } });
        }
        check(&cache);
        let kept = (0..set).filter(|block| cache.has(Name::new(1, *block))).count();
        prop_assert_eq!(kept, set as usize, "of {}", set);
    }
}
