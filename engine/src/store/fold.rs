//! Recovery as decisions: records applied to slots, and where a slot's log is cut. Pure.
//!
//! Records at or below the largest `durable_upto` seen were flushed: they are applied as they come.
//! Those after it are collected per slot, applied to a copy, and their blocks compared with the
//! disk; a mismatch cuts the slot's list before the operation that wrote the block (format section 8).

use std::collections::BTreeMap;

use wire::{ChunkHandle, DedupEntry};

use super::canary::{sometimes, weakened};
use super::crcs::CrcTable;
use super::dedup::DedupTable;
use super::header::{Flags, Hdr, SlotState};
use super::layout::BLOCK;
use super::record::{Body, FLAG_FILL, Head};
use super::replica::{Redo, Replica, Written, crcs_of_padded, installable};

/// What a slot holds while records are applied to it.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// Nothing.
    Free(Box<Hdr>),
    /// A replica.
    Chunk(Box<Replica>),
}

/// One slot in recovery.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub(crate) held: Held,
    /// Records up to here are in the header.
    ckpt_lsn: u64,
    /// Differs from the header.
    pub(crate) changed: bool,
    /// Records applied.
    pub(crate) applied: u64,
}

/// A record that was read, not applied yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// Of an INSTALL: the dedup table as it lies in the slot; `None` when it is damaged.
    pub(crate) table: Option<Vec<DedupEntry>>,
    /// Of an INSTALL that is not proven: its checksums.
    pub(crate) crcs: CrcTable,
}

impl Pending {
    /// The header of an INSTALL.
    pub(crate) fn installs(&self) -> Option<Box<Hdr>> {
        match Body::decode(self.head.kind, &self.body) {
            Ok(Body::Install(hdr)) => Some(hdr),
            _ => None,
        }
    }
}

/// A record of a type that this build does not replay: the disk is refused, nothing is misread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotReplayed(pub(crate) u8);

impl Fold {
    /// From the header on the disk, in a boot whose journal has `boot_gen`.
    pub(crate) fn new(mut held: Held, boot_gen: u64) -> Self {
        let ckpt_lsn = match &held {
            Held::Free(hdr) => hdr.common.lsn,
            Held::Chunk(replica) => replica.hdr.common.lsn,
        };
        if let Held::Chunk(replica) = &mut held
            && replica.hdr.common.boot_gen < boot_gen
            && replica.hdr.state == SlotState::Open
        {
            replica.hdr.state = SlotState::Rwr;
        }
        Self { held, ckpt_lsn, changed: false, applied: 0 }
    }

    /// Applies a record. One that does not fit marks the replica damaged: header and journal disagree.
    pub(crate) fn apply(&mut self, record: &Pending, written: &mut Vec<Written>) -> Result<(), NotReplayed> {
        let Pending { head, body, table, crcs } = record;
        if head.lsn <= self.ckpt_lsn {
            sometimes!("record that its header contains already");
            return Ok(());
        }
        self.applied += 1;
        self.changed = true;
        let Ok(body) = Body::decode(head.kind, body) else {
            return Err(NotReplayed(head.kind));
        };
        match (&mut self.held, &body) {
            (Held::Free(hdr), Body::Create(create)) => {
                written.clear();
                self.held = Held::Chunk(Box::new(Replica::created(hdr, head.chunk, head.epoch, create)));
            }
            (Held::Free(slot), Body::Install(hdr))
                if (hdr.chunk(), hdr.common.number) == (head.chunk, head.slot) && installable(hdr) =>
            {
                // All of it was durable before the record was written: there is nothing to look at.
                written.clear();
                let entries = table.as_deref().unwrap_or_default();
                let mut replica = Replica::installed(slot, hdr, DedupTable::new(entries));
                replica.crcs = crcs.clone();
                if table.is_none() {
                    replica.hdr.flags.set(Flags::DAMAGED);
                }
                self.held = Held::Chunk(Box::new(replica));
            }
            (Held::Chunk(replica), Body::Free { authority, .. })
                if replica.hdr.chunk() == head.chunk && replica.check_free(*authority).is_ok() =>
            {
                written.clear();
                self.held = Held::Free(Box::new(replica.hdr.freed()));
            }
            (Held::Chunk(replica), _) if replica.hdr.chunk() == head.chunk => {
                let mut sink = |blocks| written.push(blocks);
                if let Err(error) = replica.apply(head.lsn, head.epoch, head.flags, &body, &mut sink) {
                    tracing::error!(chunk = %head.chunk, lsn = head.lsn, %error, "record does not fit its replica");
                    replica.hdr.flags.set(Flags::DAMAGED);
                }
                if weakened!(OverwriteInPlace) {
                    replica.redo = Redo::default();
                }
            }
            (Held::Chunk(replica), _) => {
                tracing::error!(chunk = %head.chunk, lsn = head.lsn, "record of another chunk");
                replica.hdr.flags.set(Flags::DAMAGED);
            }
            (Held::Free(_), _) => {
                tracing::error!(chunk = %head.chunk, lsn = head.lsn, "record of a chunk that is not here");
            }
        }
        Ok(())
    }

    /// The journal that held its records lost some of them: its length proves nothing.
    pub(crate) fn journal_was_damaged(&mut self) {
        if let Held::Chunk(replica) = &mut self.held
            && matches!(replica.hdr.state, SlotState::Open | SlotState::Rwr)
        {
            replica.hdr.flags.set(Flags::DAMAGED);
            self.changed = true;
        }
    }

    /// The process that wrote it is gone.
    pub(crate) fn restart(&mut self) {
        if let Held::Chunk(replica) = &mut self.held {
            replica.restart();
            if replica.redo.is_empty() {
                replica.all_is_written();
            }
        }
    }
}

/// What a slot's unproven records come to.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) fold: Fold,
    /// Blocks whose last writer is unproven, ascending.
    pub(crate) verify: Vec<Check>,
}

/// A block that must be looked at, on behalf of its last writer only (rule R7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) block: u32,
    /// The record that wrote it.
    pub(crate) lsn: u64,
    /// First record of that operation: its parts may lie in several batches, some of them proven.
    pub(crate) op_lsn: u64,
    /// What the block should be.
    pub(crate) crc: u32,
}

/// Applies a slot's unproven records below `cut` to a copy of its proven state. A promise is kept even
/// where the data before it is not: it may have been answered, and it only ever refuses.
pub(crate) fn try_until(proven: &Fold, records: &[Pending], cut: u64) -> Result<Trial, NotReplayed> {
    let mut fold = proven.clone();
    let mut written = Vec::new();
    let mut gone = (ChunkHandle::NONE, 0);
    for record in records {
        if record.head.lsn < cut || record.head.kind == PROMISE {
            fold.apply(record, &mut written)?;
        } else if let Some(seq) = last_seq(record) {
            gone = (record.head.chunk, seq.max(gone.1));
        }
    }
    let newest = written.last().copied();
    let mut last_writer = BTreeMap::new();
    for blocks in written {
        for block in blocks.first_block..blocks.first_block + blocks.blocks {
            last_writer.insert(block, blocks);
        }
    }
    let mut verify = Vec::new();
    if let Held::Chunk(replica) = &mut fold.held {
        if replica.hdr.chunk() == gone.0 {
            replica.suspect(gone.1);
        }
        let whole = replica.hdr.durable_len / BLOCK;
        // An image is written again, whatever lies there (rule R7).
        let looked_at = |block: u32| block < whole && !replica.redo.has(block);
        let check = |(block, by): (u32, Written)| {
            Some(Check { block, lsn: by.lsn, op_lsn: by.op_lsn, crc: replica.crcs.get(block)? })
        };
        verify = last_writer
            .iter()
            .map(|(block, by)| (*block, *by))
            .filter(|(block, _)| looked_at(*block))
            .filter_map(check)
            .collect();
        if weakened!(TailInPlace)
            && !replica.tail.is_empty()
            && let Some(by) = newest.filter(|by| by.first_block + by.blocks == whole)
        {
            let crc = crcs_of_padded(&replica.tail);
            verify.push(Check { block: whole, lsn: by.lsn, op_lsn: by.op_lsn, crc });
        }
        if weakened!(EveryWriterChecked) {
            verify.extend(
                records
                    .iter()
                    .filter(|record| record.head.lsn < cut)
                    .flat_map(checks_of)
                    .filter(|check| looked_at(check.block)),
            );
        }
    }
    fold.changed |= gone.1 > 0;
    Ok(Trial { fold, verify })
}

/// What a single APPEND says of the blocks it wrote, whoever wrote them later: only a planted bug asks.
fn checks_of(record: &Pending) -> Vec<Check> {
    let lsn = record.head.lsn;
    match Body::decode(record.head.kind, &record.body) {
        Ok(Body::Append(append)) => (append.first_block..)
            .zip(append.crcs.iter())
            .map(|(block, crc)| Check { block, lsn, op_lsn: lsn, crc: *crc })
            .collect(),
        _ => Vec::new(),
    }
}

/// Type number of PROMISE.
const PROMISE: u8 = 6;

/// The last entry that a record would have added.
fn last_seq(record: &Pending) -> Option<u64> {
    match Body::decode(record.head.kind, &record.body).ok()? {
        Body::Append(append) if record.head.flags & FLAG_FILL == 0 => Some(append.op.seq),
        Body::Overwrite { op, .. } | Body::Forget { op, .. } | Body::Final { op, .. } => Some(op.seq),
        Body::Seal(seal) => Some(seal.last_seq),
        _ => None,
    }
}

/// Blocks of which a record carries images: the replica's checksums of them must be in memory.
pub(crate) fn image_blocks(record: &Pending) -> Vec<u32> {
    match Body::decode(record.head.kind, &record.body) {
        Ok(Body::Overwrite { images, .. } | Body::Repair(images)) => {
            images.blocks.iter().map(|(block, _)| *block).collect()
        }
        _ => Vec::new(),
    }
}

/// Where to cut: before the earliest operation with a block that does not hold what it should.
pub(crate) fn cut_before(verify: &[Check], on_disk: &BTreeMap<u32, u32>) -> Option<u64> {
    let differs = |check: &&Check| on_disk.get(&check.block) != Some(&check.crc);
    verify.iter().filter(differs).map(|check| check.op_lsn).min()
}
