//! A bare io_uring loop on one file: what the device gives to somebody who keeps no promises.
//!
//! For benchmarks only: one thread, one ring, plain aligned buffers, no runtime, no checksums, no
//! journal. It drains before a sync and goes on writing while the sync runs, as fio does with
//! `--fdatasync=N`, so that the two can be compared with each other and with the engine.

#![allow(unsafe_code, reason = "buffers shared with the kernel")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};

use super::slab::{Block, Slab};

/// What is done with each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawKind {
    /// Read it.
    Read,
    /// Write it.
    Write,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct RawJob<'a> {
    /// Open for direct I/O.
    pub file: &'a File,
    /// Read or write.
    pub kind: RawKind,
    /// Bytes of one block: a multiple of 4,096, at most 2 MiB.
    pub block_len: usize,
    /// Blocks in flight, 1 to 1,024.
    pub depth: usize,
    /// One `fdatasync` after so many blocks; `None`: never.
    pub sync_every: Option<usize>,
    /// Submit only when there is nothing else to do, as runtimes do, instead of after each block.
    pub batched: bool,
}

/// A run's figures.
#[derive(Clone, Debug, Default)]
pub struct RawDone {
    /// From the first submission to the last completion, syncs included.
    pub elapsed: Duration,
    /// Blocks moved.
    pub blocks: u64,
    /// With `sync_every` 1: from the submission of each block to the end of its sync.
    pub cycles: Vec<Duration>,
}

/// Moves a block at each of `offsets` (multiples of 4,096), in order, then waits for everything; stops
/// early once `budget` has passed. Blocks the thread.
///
/// # Errors
///
/// As the kernel says; a short transfer is `UnexpectedEof`. Nothing is in flight on return.
pub fn run(job: &RawJob<'_>, offsets: impl Iterator<Item = u64>, budget: Option<Duration>) -> io::Result<RawDone> {
    let mut ring = Ring::new(job)?;
    let begun = now();
    let mut done = RawDone::default();
    for offset in offsets {
        if budget.is_some_and(|budget| begun.elapsed() >= budget) {
            break;
        }
        let submitted = now();
        ring.block(job, offset)?;
        done.blocks += 1;
        if let Some(every) = job.sync_every
            && done.blocks % every as u64 == 0
        {
            ring.drain(0)?;
            ring.sync(job)?;
            if every == 1 {
                ring.drain(0)?;
                done.cycles.push(submitted.elapsed());
            }
        }
    }
    ring.drain(0)?;
    if job.sync_every.is_some() {
        ring.sync(job)?;
        ring.drain(0)?;
    }
    done.elapsed = begun.elapsed();
    Ok(done)
}

#[allow(clippy::disallowed_methods, reason = "it measures, and nothing else")]
fn now() -> Instant {
    Instant::now()
}

/// Marks the completion of a sync; blocks carry the index of their buffer.
const SYNC: u64 = u64::MAX;

/// A ring and its buffers.
struct Ring {
    ring: IoUring,
    buffers: Vec<Block>,
    /// Buffers that no operation uses.
    free: Vec<usize>,
    in_flight: usize,
    block_len: usize,
    batched: bool,
}

impl Ring {
    fn new(job: &RawJob<'_>) -> io::Result<Self> {
        if !(1..=1024).contains(&job.depth) || job.block_len == 0 || !job.block_len.is_multiple_of(super::pool::PAGE) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "1 to 1,024 blocks of whole pages"));
        }
        let entries = u32::try_from(job.depth + 1).unwrap_or(u32::MAX).next_power_of_two();
        let slab = Slab::new(0);
        let mut buffers: Vec<Block> = (0..job.depth).map(|_| slab.take(job.block_len)).collect();
        for (index, buffer) in (1_u64..).zip(&mut buffers) {
            fill(buffer.bytes_mut(), index);
        }
        let free = (0..job.depth).collect();
        let ring = super::uring::retry(|| IoUring::new(entries))?;
        Ok(Self { ring, buffers, free, in_flight: 0, block_len: job.block_len, batched: job.batched })
    }

    fn block(&mut self, job: &RawJob<'_>, offset: u64) -> io::Result<()> {
        while self.free.is_empty() {
            self.reap(1)?;
        }
        let Some(index) = self.free.pop() else { return Err(io::ErrorKind::Other.into()) };
        let memory = self.buffers[index].bytes_mut().as_mut_ptr();
        let len = u32::try_from(self.block_len).unwrap_or(u32::MAX);
        let fd = types::Fd(job.file.as_raw_fd());
        let entry = match job.kind {
            RawKind::Read => opcode::Read::new(fd, memory, len).offset(offset).build(),
            RawKind::Write => opcode::Write::new(fd, memory, len).offset(offset).build(),
        };
        self.push(&entry.user_data(index as u64))
    }

    fn sync(&mut self, job: &RawJob<'_>) -> io::Result<()> {
        let fd = types::Fd(job.file.as_raw_fd());
        let entry = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
        self.push(&entry.user_data(SYNC))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the buffer it names belongs to `self.buffers`, is taken from `free` until its
        // completion is reaped, and `Drop` reaps all before the buffers go.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.map_err(|_full| io::Error::other("the ring is smaller than what is in flight"))?;
        self.in_flight += 1;
        if !self.batched {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Waits until at most `left` operations are in flight.
    fn drain(&mut self, left: usize) -> io::Result<()> {
        while self.in_flight > left {
            self.reap(1)?;
        }
        Ok(())
    }

    fn reap(&mut self, least: usize) -> io::Result<()> {
        self.ring.submit_and_wait(least)?;
        let mut failed = None;
        for completion in self.ring.completion() {
            self.in_flight -= 1;
            let wanted = if completion.user_data() == SYNC { 0 } else { self.block_len };
            if let Ok(index) = usize::try_from(completion.user_data())
                && index < self.buffers.len()
            {
                self.free.push(index);
            }
            match usize::try_from(completion.result()) {
                Ok(count) if count == wanted => {}
                Ok(_) => failed = Some(io::ErrorKind::UnexpectedEof.into()),
                Err(_) => failed = Some(io::Error::from_raw_os_error(-completion.result())),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            let before = self.in_flight;
            // A failed operation has ended as well; an error without any progress is the ring's own.
            if self.reap(1).is_err() && self.in_flight == before {
                // What the kernel may still write to is given up, not freed.
                std::mem::forget(std::mem::take(&mut self.buffers));
                return;
            }
        }
    }
}

/// Bytes that no device can compress away.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in bytes.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::{FileExt, OpenOptionsExt};

    use super::*;

    fn file(folder: &std::path::Path) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT);
        options.open(folder.join("file")).unwrap()
    }

    #[test]
    fn every_block_is_written_and_read_and_a_short_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let write =
            RawJob { file: &file, kind: RawKind::Write, block_len: 8192, depth: 4, sync_every: Some(3), batched: true };
        let offsets = || (0..10).map(|index| index * 8192);
        assert_eq!(run(&write, offsets(), None).unwrap().blocks, 10);
        assert_eq!(file.metadata().unwrap().len(), 10 * 8192);
        let plain = File::open(folder.path().join("file")).unwrap();
        for index in 0..10 {
            let mut word = [0; 8];
            plain.read_exact_at(&mut word, index * 8192 + 4096).unwrap();
            assert_ne!(word, [0; 8], "block {index} was written");
        }
        let read = RawJob { kind: RawKind::Read, sync_every: None, batched: false, ..write };
        assert_eq!(run(&read, offsets(), None).unwrap().blocks, 10);
        let beyond = run(&read, (0..11).map(|index| index * 8192), None).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_lone_writer_has_one_cycle_for_each_block() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let job = RawJob {
            file: &file,
            kind: RawKind::Write,
            block_len: 4096,
            depth: 1,
            sync_every: Some(1),
            batched: false,
        };
        let done = run(&job, (0..5).map(|index| index * 4096), None).unwrap();
        assert_eq!((done.blocks, done.cycles.len()), (5, 5));
        assert!(done.cycles.iter().sum::<Duration>() <= done.elapsed);
    }
}
