//! What the kernel counted on a block device, and a small device of our own for exact counts.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Requests of one block device, as `/sys/dev/block/*/stat` has them (the same as `/proc/diskstats`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Writes completed. The kernel counts a flush as a write too on devices that it sends flushes to.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Flushes completed.
    pub flushes: u64,
}

/// The device under a folder; `None` where the kernel does not tell.
#[must_use]
pub fn requests(folder: &Path) -> Option<Requests> {
    let device = fs::metadata(folder).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    parse(&fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<Requests> {
    let fields: Vec<u64> = stat.split_whitespace().map_while(|field| field.parse().ok()).collect();
    Some(Requests { writes: *fields.get(4)?, write_bytes: fields.get(6)? * 512, flushes: *fields.get(15)? })
}

impl Requests {
    /// What came since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            writes: self.writes - earlier.writes,
            write_bytes: self.write_bytes - earlier.write_bytes,
            flushes: self.flushes - earlier.flushes,
        }
    }
}

/// A file system on a loop device that nobody else writes to. Unmounted and removed when dropped.
#[derive(Debug)]
pub struct OwnDevice {
    device: String,
    image: PathBuf,
    mount: PathBuf,
}

impl OwnDevice {
    /// Makes an ext4 of `len` bytes in `folder`. Needs root, loop devices and `mkfs.ext4`.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn make(folder: &Path, len: u64) -> io::Result<Self> {
        let (image, mount) = (folder.join("device"), folder.join("mount"));
        fs::File::create(&image)?.set_len(len)?;
        fs::create_dir_all(&mount)?;
        let shown = image.display().to_string();
        let device = call("losetup", &["--show", "--direct-io=on", "-f", &shown]).inspect_err(|_| {
            let _ = fs::remove_file(&image);
        })?;
        let made = Self { device, image, mount };
        call("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", &made.device])?;
        call("mount", &[&made.device, &made.mount.display().to_string()])?;
        Ok(made)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.mount
    }
}

impl Drop for OwnDevice {
    fn drop(&mut self) {
        // Each fails when making it had not come so far.
        let _ = call("umount", &[&self.mount.display().to_string()]);
        let _ = call("losetup", &["-d", &self.device]);
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_dir(&self.mount);
    }
}

fn call(program: &str, arguments: &[&str]) -> io::Result<String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let out = Command::new(program).env("PATH", path).args(arguments).output()?;
    if !out.status.success() {
        return Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&out.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_told_apart() {
        let stat = "  10 1 2 3  40 5 600 7 0 8 9 0 0 0 0  11 12\n";
        assert_eq!(parse(stat), Some(Requests { writes: 40, write_bytes: 600 * 512, flushes: 11 }));
        assert_eq!(parse("10 1 2 3 40 5 600"), None, "a kernel that does not count flushes");
    }
}
