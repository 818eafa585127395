//! Where a new chunk goes among the disks of one server, and which of two copies of a chunk counts. Pure.

use wire::{ChunkHandle, Epoch};

/// What is known about a disk when a chunk is to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Free for new chunks, bytes.
    pub(crate) free: u64,
    /// It answers, and neither drains nor was tried for this chunk already.
    pub(crate) takes_chunks: bool,
}

/// A disk for this chunk: drawn by the handle, with the free space as weight, so that disks fill evenly
/// and none gets all new chunks at once. `None` when no disk has room.
pub(crate) fn disk_for(chunk: ChunkHandle, rooms: &[Room]) -> Option<usize> {
    let weight = |room: &Room| if room.takes_chunks { u128::from(room.free) } else { 0 };
    let total: u128 = rooms.iter().map(weight).sum();
    // The handle's other hash chooses the shard: this one must not follow it.
    let draw = u128::from(mixed(chunk.0));
    let mut left = (total > 0).then(|| draw % total)?;
    rooms.iter().position(|room| {
        let mine = weight(room);
        let is_here = left < mine;
        left = left.saturating_sub(mine);
        is_here
    })
}

/// The finalizer of MurmurHash3.
fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

/// One of several copies of a chunk on the disks of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Copy {
    /// The newest chain it promised or belongs to: a newer one wins.
    pub(crate) epoch: (Epoch, Epoch),
    /// Of the same epoch: the longer.
    pub(crate) durable_len: u32,
}

/// Whether `other` replaces `known` as the copy that is served.
pub(crate) fn is_newer(known: &Copy, other: &Copy) -> bool {
    other > known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(free: u64) -> Room {
        Room { free, takes_chunks: true }
    }

    fn counts(rooms: &[Room], draws: u64) -> Vec<u64> {
        let mut counts = vec![0; rooms.len()];
        for chunk in 1..=draws {
            counts[disk_for(ChunkHandle(chunk), rooms).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn disks_get_chunks_in_proportion_to_their_free_space() {
        let counts = counts(&[room(1000), room(3000), room(0), room(6000)], 10_000);
        assert!(counts[0].abs_diff(1000) < 150 && counts[1].abs_diff(3000) < 200 && counts[3].abs_diff(6000) < 200);
        assert_eq!(counts[2], 0, "a full disk gets none");
    }

    #[test]
    fn the_chunks_of_one_shard_go_to_all_disks() {
        let rooms = [room(1 << 40), room(1 << 40)];
        let of_shard = (1..4000).map(ChunkHandle).filter(|chunk| chunk.shard(2) == 1);
        let first = of_shard.clone().filter(|chunk| disk_for(*chunk, &rooms) == Some(0)).count();
        assert!(first.abs_diff(of_shard.count() / 2) < 100, "{first}");
    }

    #[test]
    fn a_disk_that_failed_drains_or_was_tried_gets_none_and_with_no_other_there_is_no_place() {
        let failed = Room { free: u64::MAX, takes_chunks: false };
        assert_eq!(counts(&[failed, room(1)], 100), [0, 100]);
        assert_eq!(disk_for(ChunkHandle(1), &[failed]), None);
        assert_eq!(disk_for(ChunkHandle(1), &[room(0)]), None);
        assert_eq!(disk_for(ChunkHandle(1), &[]), None);
        assert!(disk_for(ChunkHandle(1), &[room(u64::MAX), room(u64::MAX)]).is_some());
    }

    #[test]
    fn of_two_copies_the_newer_epoch_wins_and_of_one_epoch_the_longer() {
        let copy = |epoch, promised, durable_len| Copy { epoch: (Epoch(epoch), Epoch(promised)), durable_len };
        assert!(is_newer(&copy(1, 1, 900), &copy(2, 2, 10)));
        assert!(is_newer(&copy(1, 1, 900), &copy(1, 2, 10)));
        assert!(!is_newer(&copy(2, 2, 10), &copy(1, 1, 900)));
        assert!(is_newer(&copy(2, 2, 10), &copy(2, 2, 11)));
        assert!(!is_newer(&copy(2, 2, 10), &copy(2, 2, 10)), "of two equal ones the first stays");
    }
}
