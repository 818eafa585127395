//! Appends, overwrites, repairs: what changes bytes.

use std::rc::Rc;

use wire::checksum::block_crcs;
use wire::member::ReplicaState;
use wire::{DedupEntry, Epoch, OpId, Seq};

use super::{Durable, Worker};
use crate::runtime::sim::{SimBuf, SimDisk};
use crate::runtime::{FileId, Runtime};
use crate::store::canary::sometimes;
use crate::store::tests::rig::{STREAM, bytes, payload, read_all};
use crate::store::{Entry, StoreError, Upto};

impl Worker {
    /// Accepted at once; acknowledged by a task of its own.
    pub(in super::super) async fn append(&mut self, parts: u16) {
        if !self.is_writable() || self.now().fixed {
            return;
        }
        let sizes: Vec<usize> = (0..parts).map(|_| self.size()).collect();
        let off = self.now().content.len();
        self.write(off, &sizes).await;
    }

    /// Of bytes below the end, across it now and then: random places, a few blocks again and again,
    /// whole blocks, the partial one at the end.
    pub(in super::super) async fn overwrite(&mut self, parts: u16) {
        if !self.is_writable() || self.now().content.is_empty() {
            return;
        }
        let len = self.now().content.len();
        let off = match self.rng.below(5) {
            0 => self.rng.below(len as u64).min(3 * 4096 + self.rng.below(3)),
            1 => (len as u64 - 1) / 4096 * 4096,
            2 => (len as u64).saturating_sub(1 + self.rng.below(5000)),
            3 => self.rng.below(len as u64) / 4096 * 4096,
            _ => self.rng.below(len as u64),
        };
        let off = usize::try_from(off).unwrap();
        let across = self.one_in(4) && !self.now().fixed;
        let mut sizes = Vec::new();
        let mut at = off;
        // What comes in parts may take half of the journal.
        let most = self.log_bytes() / if parts > 1 || across { 9 } else { 3 };
        let end = len.min(off + most.min(40_000));
        for _ in 0..parts {
            let size = self.size().min(end - at);
            if size > 0 {
                sizes.push(size);
            }
            at += size;
        }
        if across && at < end {
            sizes.push(end - at);
            at = end;
        }
        if across && at == len {
            sizes.push(self.size());
        }
        self.write(off, &sizes).await;
    }

    fn log_bytes(&self) -> usize {
        usize::try_from(self.store.inner.state.borrow().log.log_bytes()).unwrap()
    }

    /// Whether images of these bytes may be too many for this journal, however empty it is.
    fn is_large(&self, off: usize, len: usize, parts: u16) -> bool {
        // Two parts may share a block.
        let images = ((off + len).div_ceil(4096) - off / 4096 + usize::from(parts - 1)) * 4096;
        let need = images + images / 512 + 8192;
        (if parts > 1 { 2 * need } else { need }) + 8192 > self.log_bytes() / 4 * 3
    }

    pub(in super::super) async fn overwrite_tail(&mut self) {
        if !self.is_writable() || self.now().content.is_empty() {
            return;
        }
        let len = self.now().content.len();
        let off = (len - 1) / 4096 * 4096;
        self.write(off, &[len - off]).await;
    }

    pub(in super::super) async fn overwrite_across(&mut self) {
        if !(self.is_writable() && !self.now().fixed && !self.now().content.is_empty()) {
            return;
        }
        let len = self.now().content.len();
        let off = len.saturating_sub(5000);
        self.write(off, &[len - off, 6000]).await;
    }

    pub(in super::super) async fn append_or_overwrite(&mut self) {
        let empty = self.now().content.is_empty();
        if empty || self.one_in(2) { self.append(1).await } else { self.overwrite(1).await }
    }

    /// One operation, a part of each size, from `off` on: OVERWRITE below the end, then APPEND.
    async fn write(&mut self, off: usize, sizes: &[usize]) {
        let len: usize = sizes.iter().sum();
        let now = self.now();
        let end = now.content.len();
        let (off32, total) = (u32::try_from(off).unwrap(), u32::try_from(len).unwrap());
        match self.store.reserve(self.handle(), off32 + total).await {
            Ok(()) => {}
            Err(StoreError::NoSpace) => return,
            Err(error) if self.is_fault(&error) => return,
            Err(error) => panic!("reserve: {error:?}"),
        }
        let data = bytes(self.rng.next(), len);
        let parts = u16::try_from(sizes.len()).unwrap();
        let mut at = 0;
        for (part, size) in (0..).zip(sizes) {
            let piece = &data[at..at + size];
            let offset = off32 + u32::try_from(at).unwrap();
            // A re-opened chunk counts its entries anew, its streams go on.
            let newest = now.dedup.iter().filter(|entry| entry.id.stream == STREAM).map(|entry| entry.id.op).max();
            let id = OpId { stream: STREAM, op: newest.unwrap_or(0).max(now.last_seq) + 1 };
            let entry = Entry {
                chunk: self.handle(),
                epoch: Epoch(now.epoch),
                seq: Seq(now.last_seq + 1 + u64::from(part)),
                id,
                first_unacked: id.op.saturating_sub(3),
                op_off: off32,
                op_len: total,
                offset,
                length: u32::try_from(*size).unwrap(),
                part,
                parts,
                committed_seq: self.store.view(self.handle()).unwrap().committed_seq,
                crcs: block_crcs(piece),
            };
            let buf = payload(&self.rt, piece).await;
            let below = off + at < end;
            let mut waited = 0;
            let done = loop {
                match self.accept(&entry, &buf, below).await {
                    Err(StoreError::Busy) if part == 0 => return,
                    // The rest of an operation must follow: wait for room.
                    Err(StoreError::Busy) => {
                        waited += 1;
                        assert!(waited < 1000, "no room in the journal for the rest of an operation");
                        self.rt.sleep(std::time::Duration::from_millis(5)).await;
                    }
                    // Too much for this journal.
                    Err(StoreError::BadRange)
                        if part == 0 && below && self.is_large(off, len.min(end - off), parts) =>
                    {
                        return;
                    }
                    // The journal was so full that the incomplete operation was dropped.
                    Err(StoreError::NotNext) if part > 0 => return,
                    Err(error) if self.is_fault(&error) => return,
                    Err(error) => panic!("part {part} of {sizes:?} at {off} of {end}: {error:?}"),
                    Ok(done) => break done,
                }
            };
            if part + 1 < parts {
                at += size;
                self.dawdle().await;
                continue;
            }
            let mut snap = now.clone();
            let rest = now.content.get(off + len..).unwrap_or_default();
            snap.content = Rc::new([&now.content[..off], &data, rest].concat());
            snap.last_seq = entry.seq.0;
            let landed = DedupEntry { id, chunk: self.handle(), offset: off32, len: total };
            snap.completed(landed, entry.first_unacked);
            let number = self.model.borrow_mut().chunk(self.chunk).issue(snap);
            let (model, chunk, faulty) = (Rc::clone(&self.model), self.chunk, self.faulty);
            let acknowledged = async move {
                match done.await {
                    Ok(()) => model.borrow_mut().chunk(chunk).acknowledge(number),
                    Err(error) => assert!(faulty, "append: {error:?}"),
                }
            };
            if self.one_in(3) { acknowledged.await } else { self.rt.spawn(acknowledged) }
        }
    }

    async fn accept(&self, entry: &Entry, buf: &SimBuf, below: bool) -> Result<Durable, StoreError> {
        if !below {
            return Ok(Box::pin(self.store.append(entry, buf.clone())?));
        }
        let edges = self.store.prepare_overwrite(entry.chunk, entry.offset, entry.length).await?;
        Ok(Box::pin(self.store.overwrite(entry, buf, &edges)?))
    }

    /// The same content over blocks that are well: nothing changes, whatever becomes of it.
    pub(in super::super) async fn repair(&mut self) {
        let now = self.now();
        if now.content.len() < 4096 || now.state == Some(ReplicaState::Condemned) {
            return;
        }
        let blocks = now.content.len() / 4096;
        let first = usize::try_from(self.rng.below(blocks as u64)).unwrap();
        let most = (self.log_bytes() / 8192).min(12);
        let count = (blocks - first).min(1 + usize::try_from(self.rng.below(most as u64)).unwrap());
        let piece = &now.content[first * 4096..(first + count) * 4096];
        let buf = payload(&self.rt, piece).await;
        match self.store.repair(self.handle(), u32::try_from(first).unwrap(), buf).await {
            Ok(()) | Err(StoreError::Busy) => {}
            Err(error) if self.is_fault(&error) => return,
            Err(error) => panic!("repair: {error:?}"),
        }
        let wrong = payload(&self.rt, &bytes(1, 4096)).await;
        let refused = self.store.repair(self.handle(), u32::try_from(first).unwrap(), wrong).await;
        if !refused.as_ref().is_err_and(|error| self.is_fault(error)) {
            assert_eq!(refused, Err(StoreError::Mismatch));
        }
    }

    /// Opens the chunk again, damages one of its blocks, and overwrites a part of it.
    pub(in super::super) async fn overwrite_over_rot(mut self, disk: &SimDisk) {
        for _ in 0..20 {
            let now = self.now();
            match now.state {
                Some(ReplicaState::Sealed) => self.reopen().await,
                Some(ReplicaState::Open) if self.is_writable() => break,
                Some(_) if now.filled || now.closed => self.confirm().await,
                Some(_) if now.promised > now.epoch => self.seal().await,
                _ => self.prepare().await,
            }
        }
        if !self.is_writable() {
            return;
        }
        self.store.inner.checkpoint().await;
        let now = self.now();
        let block = usize::try_from(self.rng.below(now.content.len() as u64 / 4096)).unwrap();
        let slot = self.store.inner.state.borrow().chunks[&self.handle()].slot();
        disk.rot(FileId::Slot(slot), block as u64 * 4096 + self.rng.below(4096), &[1 << self.rng.below(8)]);
        let off = block * 4096 + 1 + usize::try_from(self.rng.below(4000)).unwrap();
        let (offset, bad) = (u32::try_from(off).unwrap(), u32::try_from(block).unwrap());
        // Else it was in memory, as it should be: the read below tells whether it was that.
        let prepared = self.store.prepare_overwrite(self.handle(), offset, 10).await;
        if let Err(error) = prepared {
            assert_eq!(error, StoreError::BadBlock(bad));
            sometimes!("overwrite refused for a bad block");
            let good = payload(&self.rt, &now.content[block * 4096..(block + 1) * 4096]).await;
            self.store.repair(self.handle(), bad, good).await.unwrap();
        }
        self.write(off, &[10]).await;
        self.store.inner.flushed().await.unwrap();
        let read = read_all(&self.store, self.chunk, Upto::Durable).await.unwrap();
        assert!(read == *self.now().content, "rot was merged into an overwrite");
    }
}
