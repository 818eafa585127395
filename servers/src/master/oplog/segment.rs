//! Segment files: made whole and filled with zeros, so that appending to one changes no metadata of
//! the file system and a flush is only a flush.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::record::{HeadError, PAGE, SegmentHead, Uuid};
use crate::master::entry::Lsn;

/// Size of a segment file. A larger one wastes more after a restart, a smaller one is made more often.
pub(super) const SEGMENT_LEN: usize = 16 << 20;

/// A segment file on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) first_lsn: Lsn,
}

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:012}.log"))
}

/// Numbers of the segment files there, in order.
pub(super) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = vec![];
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|stem| stem.parse::<u64>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The whole of a segment, made durable first: what is decided from it must not vanish later.
pub(super) fn read(dir: &Path, number: u64) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).write(true).open(path(dir, number))?;
    file.sync_all()?;
    let mut bytes = Vec::with_capacity(SEGMENT_LEN);
    file.by_ref().take(u64::try_from(SEGMENT_LEN).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    Ok(bytes)
}

/// What the head page of a segment says; `None` for one that was prepared and not begun.
pub(super) fn head(bytes: &[u8]) -> Result<Option<SegmentHead>, HeadError> {
    match SegmentHead::decode(bytes) {
        Err(HeadError::Damaged) if bytes.iter().take(PAGE).all(|byte| *byte == 0) => Ok(None),
        head => head.map(Some),
    }
}

/// Makes a segment of zeros, durable under its name.
pub(super) fn prepare(dir: &Path, number: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path(dir, number))?;
    let zeros = vec![0; 1 << 20];
    for start in (0..SEGMENT_LEN).step_by(zeros.len()) {
        file.write_all_at(&zeros, u64::try_from(start).unwrap_or(u64::MAX))?;
    }
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}

pub(super) fn remove(dir: &Path, number: u64) -> io::Result<()> {
    fs::remove_file(path(dir, number))
}

/// The segment being written, and the next one in the making.
#[derive(Debug)]
pub(super) struct Writer {
    dir: PathBuf,
    uuid: Uuid,
    file: File,
    number: u64,
    at: usize,
    next: Option<JoinHandle<io::Result<File>>>,
}

impl Writer {
    /// Begins a new segment, whose first record will be `first_lsn`; its head is durable on return.
    pub(super) fn begin(dir: &Path, uuid: Uuid, number: u64, first_lsn: Lsn, prev_crc: u32) -> io::Result<Self> {
        let file = prepare(dir, number)?;
        let mut writer = Self { dir: dir.into(), uuid, file, number, at: 0, next: None };
        writer.write_head(first_lsn, prev_crc)?;
        writer.file.sync_data()?;
        Ok(writer)
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether a batch of this length fits into the segment.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.at + len <= SEGMENT_LEN
    }

    /// Goes on in the next segment. Durable with the next flush.
    pub(super) fn roll(&mut self, first_lsn: Lsn, prev_crc: u32) -> io::Result<()> {
        self.number += 1;
        self.file = match self.next.take() {
            Some(next) => next.join().map_err(|_| io::Error::other("the thread that prepares segments died"))??,
            None => prepare(&self.dir, self.number)?,
        };
        self.write_head(first_lsn, prev_crc)
    }

    /// Writes a padded batch and flushes: durable on return. After an error nothing more may be written.
    pub(super) fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        assert!(self.fits(batch.len()) && batch.len().is_multiple_of(PAGE), "a batch is whole pages of one segment");
        self.file.write_all_at(batch, u64::try_from(self.at).unwrap_or(u64::MAX))?;
        self.file.sync_data()?;
        self.at += batch.len();
        if self.at > SEGMENT_LEN / 2 && self.next.is_none() {
            let (dir, number) = (self.dir.clone(), self.number + 1);
            self.next =
                Some(std::thread::Builder::new().name("oplog-prepare".into()).spawn(move || prepare(&dir, number))?);
        }
        Ok(())
    }

    fn write_head(&mut self, first_lsn: Lsn, prev_crc: u32) -> io::Result<()> {
        self.file.write_all_at(&SegmentHead { uuid: self.uuid, first_lsn, prev_crc }.encode(), 0)?;
        self.at = PAGE;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A segment in the making would otherwise appear under the feet of the next owner.
        if let Some(next) = self.next.take() {
            let _ = next.join();
        }
    }
}
