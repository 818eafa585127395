//! What the machine itself can do: durable sequential writes to a disk, and a TCP copy over loopback.
//!
//! Plain system calls on plain threads, so that the figures are the machine's and not an engine's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::now;

/// One write: large enough that the cost of a call does not matter.
const WRITE_LEN: usize = 1 << 20;
/// A flush follows each so many writes: 64 MiB, one chunk.
const WRITES_PER_FLUSH: u32 = 64;
/// Alignment that `O_DIRECT` accepts on every common disk.
const ALIGN: usize = 4096;

/// Durable sequential writing.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Disk {
    /// MiB per second, flushes included.
    pub mib_per_s: f64,
    /// Median time of one `fdatasync` after 64 MiB, milliseconds.
    pub flush_ms_median: f64,
    /// Whether `O_DIRECT` was possible. Without it the figure includes the page cache.
    pub direct: bool,
}

/// A copy through one TCP connection on loopback, one thread at each end.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Loopback {
    /// MiB per second.
    pub mib_per_s: f64,
}

/// Writes a file in `folder` for about `budget` and removes it. Takes at most 4 GiB of space.
///
/// # Errors
///
/// What the system says; the file is removed all the same.
pub fn disk(folder: &Path, budget: Duration) -> io::Result<Disk> {
    let scratch = Scratch(folder.join(format!(".hercules-limits-{}", std::process::id())));
    let (file, direct) = open(&scratch.0)?;
    let mut backing = vec![0x5a_u8; WRITE_LEN + ALIGN];
    let start = backing.as_ptr().align_offset(ALIGN);
    let block = backing.get_mut(start..start + WRITE_LEN).ok_or_else(|| io::Error::other("no aligned memory"))?;
    let mut flushes_ms = Vec::new();
    let mut written = 0_u64;
    let begun = now();
    while flushes_ms.is_empty() || (begun.elapsed() < budget && written < 4 << 30) {
        for _ in 0..WRITES_PER_FLUSH {
            (&file).write_all(block)?;
            written += WRITE_LEN as u64;
        }
        let flush = now();
        file.sync_data()?;
        flushes_ms.push(flush.elapsed().as_secs_f64() * 1e3);
    }
    let elapsed = begun.elapsed();
    flushes_ms.sort_by(f64::total_cmp);
    let flush_ms_median = flushes_ms.get(flushes_ms.len() / 2).copied().unwrap_or_default();
    Ok(Disk { mib_per_s: mib_per_s(written, elapsed), flush_ms_median, direct })
}

/// Copies through loopback for about `budget`.
///
/// # Errors
///
/// What the system says.
pub fn loopback(budget: Duration) -> io::Result<Loopback> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let sink = thread::spawn(move || -> io::Result<u64> {
        let mut buffer = vec![0_u8; WRITE_LEN];
        let mut received = 0_u64;
        loop {
            match receiver.read(&mut buffer)? {
                0 => return Ok(received),
                len => received += len as u64,
            }
        }
    });
    let block = vec![0x5a_u8; WRITE_LEN];
    let begun = now();
    while begun.elapsed() < budget {
        sender.write_all(&block)?;
    }
    drop(sender);
    let received = sink.join().map_err(|_panic| io::Error::other("the receiving thread died"))??;
    Ok(Loopback { mib_per_s: mib_per_s(received, begun.elapsed()) })
}

/// MiB per second; zero when no time has passed.
#[must_use]
pub fn mib_per_s(bytes: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { mib(bytes) / seconds } else { 0.0 }
}

/// Bytes as MiB.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "for people; exact below 8 PiB")]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn open(path: &Path) -> io::Result<(File, bool)> {
    let flags = |direct: rustix::fs::OFlags| i32::try_from(direct.bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    match options.custom_flags(flags(rustix::fs::OFlags::DIRECT)).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            // The kernel creates the file before it refuses the flag.
            let _ = fs::remove_file(path);
            options.custom_flags(0).open(path).map(|file| (file, false))
        }
        Err(error) => Err(error),
    }
}

/// Removes its file, whatever happened.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_measured_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let measured = disk(folder.path(), Duration::ZERO).unwrap();
        assert!(measured.mib_per_s > 0.0 && measured.flush_ms_median > 0.0, "{measured:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(disk(Path::new("/nonexistent/folder"), Duration::ZERO).is_err());
    }

    #[test]
    fn loopback_is_measured() {
        assert!(loopback(Duration::from_millis(20)).unwrap().mib_per_s > 0.0);
    }
}
