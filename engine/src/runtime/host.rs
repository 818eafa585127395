//! Names on a real file system, and the calls on it that block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::{DiskSpace, FileId, Folder, Open};

/// Mode of files: the server's, readable by its group.
pub(super) const FILE_MODE: u32 = 0o640;

pub(super) fn path(root: &Path, file: FileId) -> PathBuf {
    match file {
        FileId::DiskA => root.join("DISK.A"),
        FileId::DiskB => root.join("DISK.B"),
        FileId::Ring(number) => root.join(format!("journal/ring-{number:04}")),
        FileId::Slot(number) => root.join(format!("slots/{number:08}")),
    }
}

pub(super) fn folder_path(root: &Path, folder: Folder) -> PathBuf {
    match folder {
        Folder::Root => root.to_owned(),
        Folder::Journal => root.join("journal"),
        Folder::Slots => root.join("slots"),
    }
}

/// Makes the folder of a file when the file may be made.
pub(super) fn make_folder(root: &Path, file: FileId, how: Open) -> io::Result<()> {
    let folder = match file {
        FileId::DiskA | FileId::DiskB => return Ok(()),
        FileId::Ring(_) => Folder::Journal,
        FileId::Slot(_) => Folder::Slots,
    };
    if how != Open::Create {
        return Ok(());
    }
    match fs::create_dir(folder_path(root, folder)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Opens for direct I/O.
pub(super) fn open(root: &Path, file: FileId, how: Open) -> io::Result<File> {
    make_folder(root, file, how)?;
    OpenOptions::new()
        .read(true)
        .write(how != Open::ReadOnly)
        .create(how == Open::Create)
        .truncate(false)
        .mode(FILE_MODE)
        .custom_flags(libc::O_DIRECT)
        .open(path(root, file))
}

pub(super) fn file_len(root: &Path, file: FileId) -> io::Result<Option<u64>> {
    match fs::metadata(path(root, file)) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn preallocate(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len)?)
}

pub(super) fn sync_folder(root: &Path, folder: Folder) -> io::Result<()> {
    File::open(folder_path(root, folder))?.sync_all()
}

pub(super) fn sync_file_system(root: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(root)?)?)
}

pub(super) fn space(root: &Path) -> io::Result<DiskSpace> {
    let stat = rustix::fs::statvfs(root)?;
    Ok(DiskSpace { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
}

/// A page that direct I/O can write and fill.
#[repr(C, align(4096))]
pub(crate) struct AlignedPage(pub(crate) [u8; super::pool::PAGE]);

/// The device under `root`, whether its queue is polled for completions, and a file on it that holds
/// one written block: one without a name, or DISK.A where a full disk has no room for another.
pub(super) fn device(root: &Path) -> io::Result<(u64, bool, File)> {
    let device = fs::metadata(root)?.dev();
    let written = scratch(root).or_else(|full| open(root, FileId::DiskA, Open::Existing).map_err(|_| full))?;
    Ok((device, queue_setting(device, "io_poll").as_deref() == Some("1"), written))
}

fn scratch(root: &Path) -> io::Result<File> {
    let flags = libc::O_TMPFILE | libc::O_DIRECT;
    let mut scratch = OpenOptions::new().read(true).write(true).mode(FILE_MODE).custom_flags(flags).open(root)?;
    scratch.write_all(&AlignedPage([0; super::pool::PAGE]).0)?;
    Ok(scratch)
}

/// A setting of the queue of a block device (`/sys/block/*/queue/`), `None` when there is none.
pub(crate) fn queue_setting(device: u64, name: &str) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let folder = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // A partition has its queue one folder up.
    let setting = |folder: &Path| fs::read_to_string(folder.join("queue").join(name)).ok();
    let setting = setting(&folder).or_else(|| setting(folder.parent()?))?;
    Some(setting.trim().to_owned())
}

/// What a short count is worth: whole blocks, so that the rest is aligned again.
pub(super) fn whole_blocks(count: usize) -> usize {
    count - count % super::pool::PAGE
}

/// A read that came back short is at the end of the file, or it failed.
pub(super) fn check_short(file: impl AsFd, offset: u64, count: usize) -> io::Result<()> {
    let len = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
    if offset + count as u64 >= len {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a direct read ended in the middle of the file"))
}
