//! What this machine allows and what a data folder is worth, found out before anything is started.
//!
//! For the start of a chunkserver and for `hercules doctor`. Facts are gathered by asking the kernel
//! directly, since glommio's own question ends the process where io_uring is refused; what they mean is
//! decided by functions without I/O. Nothing is left behind and nothing is configured.

mod mount;
mod verdicts;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use self::mount::mount_of;
use crate::runtime::{AlignedPage, Backend, queue_setting, uring};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, worse than it could; the remedy says how to do better.
    Warning,
    /// Do not start.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What: a stable name for logs and metrics.
    pub name: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), remedy: remedy.into() }
    }

    fn failed(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Failed, found: found.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "FAILED",
        };
        write!(f, "{verdict:<8}{:<20}{}", self.name, self.found)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, ": {}", self.remedy) }
    }
}

/// Looks at everything a chunkserver with this many shards of this many bytes of buffers, on this
/// backend, with its data below `root`, depends on. Blocks for as long as the disk takes for one block;
/// makes and removes one small file in `root`.
#[must_use]
pub fn probe(root: &Path, backend: Backend, shards: u32, memory_per_shard: u64) -> Vec<Check> {
    let mut checks = probe_machine(backend, shards, memory_per_shard);
    checks.extend(probe_disk(root, shards));
    checks
}

/// The part of [`probe`] that is about the machine, whatever its disks are.
#[must_use]
pub fn probe_machine(backend: Backend, shards: u32, memory_per_shard: u64) -> Vec<Check> {
    let allowed = uring::allowed();
    let registers = allowed.as_ref().ok().map(|()| uring::registers());
    vec![
        verdicts::io_uring(backend, allowed.as_ref().err()),
        verdicts::kernel(backend, &rustix::system::uname().release().to_string_lossy()),
        verdicts::memlock(backend, shards, memory_per_shard, memlock()),
        verdicts::memory_lock(memlock()),
        verdicts::registration(backend, registers.as_ref().map(Result::as_ref)),
        verdicts::open_files(getrlimit(Resource::Nofile).current),
    ]
}

/// The part of [`probe`] that is about one disk.
#[must_use]
pub fn probe_disk(root: &Path, shards: u32) -> Vec<Check> {
    match fs::canonicalize(root) {
        Ok(root) if root.is_dir() => disk(&root, shards),
        Ok(_) => vec![Check::failed("data-folder", "it is not a folder", "name a folder")],
        Err(error) => vec![Check::failed(
            "data-folder",
            format!("{}: {error}", root.display()),
            "make it, on ext4 or XFS, writable for this user",
        )],
    }
}

/// Keeps what this process has in memory there (rule R12): swapped-out pages bring disk faults back. Pages
/// are locked when they are first touched, so that pools do not fill ahead of need. `false`, and nothing
/// is done, where the limit is finite: memory beyond it could then not be had at all.
///
/// # Errors
///
/// The kernel refused.
pub fn lock_memory() -> io::Result<bool> {
    use rustix::mm::{MlockAllFlags, mlockall};
    if memlock().is_some() {
        return Ok(false);
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?;
    Ok(true)
}

fn disk(root: &Path, shards: u32) -> Vec<Check> {
    let mount = fs::read_to_string("/proc/self/mountinfo").ok().and_then(|mounts| mount_of(&mounts, root));
    let cache = fs::metadata(root).ok().and_then(|folder| queue_setting(folder.dev(), "write_cache"));
    let formatted = root.join("DISK.A").exists();
    let space = rustix::fs::statvfs(root).map(|stat| stat.f_bavail * stat.f_frsize);
    vec![
        verdicts::direct_io(try_direct_io(root)),
        verdicts::file_system(mount.as_ref()),
        verdicts::barriers(mount.as_ref()),
        verdicts::write_cache(cache.as_deref()),
        verdicts::free_space(space.map_err(io::Error::from), formatted, shards),
    ]
}

/// Bytes that this process may lock; `None` for as many as it likes.
fn memlock() -> Option<u64> {
    getrlimit(Resource::Memlock).current.filter(|_| !may_lock_memory())
}

/// Has CAP_IPC_LOCK.
fn may_lock_memory() -> bool {
    const IPC_LOCK: u32 = 14;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    set & (1 << IPC_LOCK) != 0
}

/// A file that is removed whatever happens.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody to tell; its name says what it is.
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes a block past the page cache and reads it back.
fn try_direct_io(root: &Path) -> io::Result<()> {
    let scratch = Scratch(root.join(format!(".hercules-probe-{}", std::process::id())));
    let mut file = open_scratch(&scratch.0)?;
    let written = AlignedPage([0x5A; 4096]);
    file.write_all(&written.0)?;
    file.sync_data()?;
    file.rewind()?;
    let mut read = AlignedPage([0; 4096]);
    file.read_exact(&mut read.0)?;
    if read.0 == written.0 { Ok(()) } else { Err(io::Error::other("what was read is not what was written")) }
}

fn open_scratch(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_DIRECT);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(checks: &[Check], name: &str) -> Verdict {
        checks.iter().find(|check| check.name == name).unwrap().verdict
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let checks = probe(root.path(), Backend::MonoioEpoll, 2, 16 << 20);
        assert_eq!(verdict(&checks, "direct-io"), Verdict::Ok, "{checks:?}");
        assert_eq!(verdict(&checks, "io-uring"), Verdict::Ok);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert_eq!(checks.len(), 11);
    }

    #[test]
    fn a_missing_folder_fails_and_is_not_made() {
        let root = tempfile::tempdir().unwrap().path().join("gone");
        let checks = probe(&root, Backend::Glommio, 2, 16 << 20);
        assert_eq!(verdict(&checks, "data-folder"), Verdict::Failed);
        assert!(!root.exists());
    }

    #[test]
    fn a_folder_in_memory_fails() {
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let checks = probe(root.path(), Backend::Glommio, 2, 16 << 20);
        assert_eq!(verdict(&checks, "file-system"), Verdict::Failed, "{checks:?}");
    }

    #[test]
    fn a_check_is_a_line_that_ends_with_what_to_do() {
        let check = Check::warning("memlock", "8 MiB", "raise it");
        assert_eq!(check.to_string(), "warning memlock             8 MiB: raise it");
        assert_eq!(Check::ok("memlock", "unlimited").to_string(), "ok      memlock             unlimited");
    }
}
