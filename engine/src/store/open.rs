//! Whose disk this is: lock, identity, and the DISK page.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::OpenError;
use super::io::Io;
use super::layout::PAGE;
use super::page::heals;
use super::page::{Bad, Disk, DiskState, Page, Picked, pick};
use super::types::{DiskConfig, Identity};
use crate::runtime::{FileId, Folder, Open, Runtime};

/// Names of the two copies of DISK.
const DISK_NAMES: [&str; 2] = ["DISK.A", "DISK.B"];

/// What is wrong when neither copy of DISK counts.
pub(crate) const BOTH_BAD: &str = "both copies of DISK are unreadable";

/// What to do then.
pub(crate) const REBUILD: &str = "nothing was changed; `hercules disk rebuild --data-dir DIR` makes DISK anew from the journals \
                       and slots and first shows what it found";

/// Held by the process for as long as it uses the disk (rule R10: a lock on DISK.A, made if absent).
#[derive(Debug)]
pub struct DiskLock {
    _file: Option<File>,
}

impl DiskLock {
    /// Makes the folders, locks.
    ///
    /// # Errors
    ///
    /// Not writable, no direct I/O, a file system that cannot promise durability, folders on several
    /// devices, or locked by a live process.
    pub fn acquire(root: &Path) -> Result<Self, OpenError> {
        let shown = root.display();
        // Before anything is made: a refusal leaves nothing behind.
        refuse_file_system(nearest(root), root)?;
        let folders = [root.to_path_buf(), root.join("journal"), root.join("slots")];
        for folder in &folders {
            fs::create_dir_all(folder).map_err(|error| {
                let what = format!("cannot make {}: {error}", folder.display());
                OpenError::new(what, "choose a folder that this user may write, on ext4 or XFS")
            })?;
        }
        let devices: Result<Vec<u64>, io::Error> =
            folders.iter().map(|folder| Ok(fs::metadata(folder)?.dev())).collect();
        let devices = devices.map_err(|error| OpenError::io("cannot look at the disk", &error))?;
        if devices.iter().any(|device| *device != devices[0]) {
            let what = format!("{shown}: journal and slots are on different devices");
            return Err(OpenError::new(what, "one flush must cover both: put them on one file system"));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_DIRECT)
            .open(root.join(DISK_NAMES[0]))
            .map_err(|error| {
                let what = format!("cannot open {shown}/{} for direct I/O: {error}", DISK_NAMES[0]);
                OpenError::new(what, "use a folder on ext4 or XFS that this user may write")
            })?;
        lock(&file, root)?;
        Ok(Self { _file: Some(file) })
    }

    /// As [`Self::acquire`] of a disk that is there already, for tools: makes nothing, and writes
    /// nothing. A disk without DISK.A has no lock to hold.
    ///
    /// # Errors
    ///
    /// There is no disk, or a live process uses it.
    pub fn of_existing(root: &Path) -> Result<Self, OpenError> {
        let file = Self::file(root)?;
        if let Some(file) = &file {
            lock(file, root)?;
        }
        Ok(Self { _file: file })
    }

    /// DISK.A of a disk that is there, opened for its lock; `None` when it is missing.
    fn file(root: &Path) -> Result<Option<File>, OpenError> {
        match OpenOptions::new().read(true).open(root.join(DISK_NAMES[0])) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_disk = [DISK_NAMES[1], "journal", "slots"].iter().any(|name| root.join(name).exists());
                if is_disk { Ok(None) } else { Err(no_disk(root)) }
            }
            Err(error) => Err(unreadable(root, &error)),
        }
    }
}

/// Whether a live process uses the disk. Takes no lock that outlives the call.
///
/// # Errors
///
/// There is no disk, or DISK.A cannot be opened.
pub fn in_use(root: &Path) -> Result<bool, OpenError> {
    let file = match DiskLock::file(root)? {
        Some(file) => file,
        None => return Ok(false),
    };
    // Shared: two who look do not disturb each other.
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => Ok(true),
        Err(error) => Err(OpenError::io("cannot look at the lock of the disk", &error.into())),
    }
}

fn lock(file: &File, root: &Path) -> Result<(), OpenError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            let what = format!("{} is in use by another process", root.display());
            let error = OpenError::new(what, "stop that process, or choose another folder");
            Err(OpenError { is_in_use: true, ..error })
        }
        Err(error) => Err(OpenError::io("cannot lock the disk", &error.into())),
    }
}

fn no_disk(root: &Path) -> OpenError {
    let what =
        format!("{} is not the disk of a chunkserver: it has no DISK.A, no journal and no slots", root.display());
    OpenError::new(what, "name the folder that the server has as --data-dir")
}

fn unreadable(root: &Path, error: &io::Error) -> OpenError {
    let what = format!("cannot open {}/{}: {error}", root.display(), DISK_NAMES[0]);
    OpenError::new(what, "run it as the user of the server")
}

/// The part of a path that exists.
fn nearest(root: &Path) -> &Path {
    let here = |folder: &&Path| folder.as_os_str().is_empty();
    match root.ancestors().find(|folder| here(folder) || folder.exists()) {
        Some(folder) if !here(&folder) => folder,
        _ => Path::new("."),
    }
}

/// tmpfs, overlay and network file systems do not keep the promises of the format. `there` is the part
/// of `root` that exists already.
fn refuse_file_system(there: &Path, root: &Path) -> Result<(), OpenError> {
    let stat = rustix::fs::statfs(there).map_err(|error| OpenError::io("cannot look at the disk", &error.into()))?;
    // From linux/magic.h; the width of the field differs between platforms.
    let kind = u32::try_from(stat.f_type & 0xFFFF_FFFF).unwrap_or(0);
    let name = match kind {
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x6969 => "NFS",
        0xFF53_4D42 | 0xFE53_4D42 => "SMB",
        0x6573_5546 => "FUSE",
        _ => return Ok(()),
    };
    let what = format!("{} is on {name}, which cannot promise durable writes", root.display());
    Err(OpenError::new(what, "use a folder on ext4 or XFS: a volume or a mounted disk"))
}

/// Reads the identity with plain direct reads; `None` for a fresh disk. Changes nothing.
///
/// # Errors
///
/// The pages are there and cannot be read, or have another format.
pub fn identity(root: &Path) -> Result<Option<Identity>, OpenError> {
    let [a, b] = DISK_NAMES.map(|name| read_plain(&root.join(name)));
    let failed = |error: io::Error| OpenError::io("cannot read DISK", &error);
    let picked = choose(decode(a.map_err(failed)?), decode(b.map_err(failed)?))?;
    Ok(picked.map(|Picked { root: disk, .. }| Identity {
        cluster: disk.cluster,
        server: disk.server,
        disk_uuid: disk.common.disk_uuid,
    }))
}

/// A page aligned as direct reads want it.
#[repr(align(4096))]
struct Aligned(Page);

fn read_plain(path: &Path) -> io::Result<Option<Box<Page>>> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut page = Box::new(Aligned([0; PAGE]));
    let count = file.read_at(&mut page.0, 0)?;
    Ok((count == PAGE).then(|| Box::new(page.0)))
}

/// A page that is not there, or empty, was never written.
fn decode(page: Option<Box<Page>>) -> Result<Disk, Bad> {
    page.map_or(Err(Bad::Blank), |page| Disk::decode(&page))
}

/// What the two copies of DISK say; `None` when neither was ever written.
pub(crate) fn choose(a: Result<Disk, Bad>, b: Result<Disk, Bad>) -> Result<Option<Picked<Disk>>, OpenError> {
    refuse_other_formats([a.as_ref().err(), b.as_ref().err()], "disk")?;
    if let (Err(Bad::Blank), Err(Bad::Blank)) = (&a, &b) {
        return Ok(None);
    }
    for bad in [&a, &b].into_iter().filter_map(|copy| copy.as_ref().err()) {
        if let Bad::Field(field) = bad {
            let what = format!("DISK uses something this build does not know: {field}");
            return Err(OpenError::new(what, "use the build that wrote it, or a newer one"));
        }
    }
    let both_bad = || {
        let what = format!("{BOTH_BAD}: whose disk this is cannot be known");
        OpenError::new(what, REBUILD)
    };
    pick(a, b).map(Some).ok_or_else(both_bad)
}

/// A page of another format is not damage.
pub(crate) fn refuse_other_formats(bad: [Option<&Bad>; 2], what: &str) -> Result<(), OpenError> {
    match bad.into_iter().flatten().find(|bad| matches!(bad, Bad::Format(_))) {
        Some(bad) => Err(OpenError::new(format!("{what}: {bad}"), "use a build that reads this format")),
        None => Ok(()),
    }
}

/// What is on the disk.
pub(crate) enum DiskFound<F> {
    /// Nothing.
    Fresh,
    /// A disk of ours.
    Formatted {
        /// Healed already, and that is flushed.
        disk: Disk,
        /// DISK.A: to flush the device with.
        file: F,
        /// One copy was bad or old.
        healed: bool,
    },
}

/// Step 1 of recovery: reads DISK, refuses what is foreign, heals.
pub(crate) async fn find_disk<R: Runtime>(io: &Io<R>, config: &DiskConfig) -> Result<DiskFound<R::File>, OpenError> {
    let failed = |error: io::Error| OpenError::io("cannot read DISK", &error);
    let root = &config.root;
    let mut copies = Vec::new();
    for id in [FileId::DiskA, FileId::DiskB] {
        let len = io.rt.file_len(root, id).await.map_err(failed)?.unwrap_or(0);
        copies.push(if len < PAGE as u64 {
            Err(Bad::Blank)
        } else {
            let file = io.rt.open(root, id, Open::Existing).await.map_err(failed)?;
            Disk::decode(&*io.read_page(&file, 0).await.map_err(failed)?)
        });
    }
    let (Some(b), Some(a)) = (copies.pop(), copies.pop()) else {
        return Ok(DiskFound::Fresh);
    };
    let Some(picked) = choose(a, b)? else {
        if io.rt.file_len(root, FileId::Slot(0)).await.map_err(failed)?.is_some() {
            let what = "DISK is missing, but there are slots: this is not a fresh disk";
            return Err(OpenError::new(what, REBUILD));
        }
        return Ok(DiskFound::Fresh);
    };
    let disk = picked.root;
    refuse_foreign(&disk, config)?;
    let file = io.rt.open(root, FileId::DiskA, Open::Create).await.map_err(failed)?;
    let heal = picked.heal.filter(|copy| heals(*copy));
    if let Some(copy) = heal {
        let id = [FileId::DiskA, FileId::DiskB][copy];
        let bad = io.rt.open(root, id, Open::Create).await.map_err(failed)?;
        io.write_bytes(&bad, disk.encode().as_slice(), 0).await.map_err(failed)?;
        io.fsync(&bad).await.map_err(failed)?;
        io.sync_folder(root, Folder::Root).await.map_err(failed)?;
    }
    Ok(DiskFound::Formatted { disk, file, healed: heal.is_some() })
}

fn refuse_foreign(disk: &Disk, config: &DiskConfig) -> Result<(), OpenError> {
    if disk.cluster != config.cluster {
        let what = format!("the disk belongs to cluster {}, this server to {}", disk.cluster, config.cluster);
        return Err(OpenError::new(what, "point the server at its own disk, or at a fresh folder"));
    }
    if disk.server != config.server {
        let what = format!("the disk belongs to server {}, this is server {}", disk.server, config.server);
        return Err(OpenError::new(what, "point the server at its own disk, or at a fresh folder"));
    }
    if disk.state == DiskState::Retired {
        return Err(OpenError::new("the disk was retired", "replace it: use a fresh folder"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::page::Common;
    use wire::{ClusterId, ServerId};

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_one_that_will_hold_it() {
        assert_eq!(nearest(Path::new("not-here")), Path::new("."));
        assert_eq!(nearest(Path::new("src/not-here/nor-this")), Path::new("src"));
        assert_eq!(nearest(Path::new("/not-here")), Path::new("/"));
    }

    fn disk() -> Disk {
        Disk {
            common: Common { page_seq: 1, ..Common::default() },
            cluster: ClusterId([1; 16]),
            server: ServerId(2),
            state: DiskState::Normal,
            rings: 1,
            slots: 0,
            ring_bytes: 1 << 20,
            master_term: 0,
            eio_count: 0,
            eio_last: 0,
            created: 0,
        }
    }

    #[test]
    fn only_a_disk_that_was_never_written_is_fresh() {
        assert!(choose(Err(Bad::Blank), Err(Bad::Blank)).unwrap().is_none());
        assert!(choose(Err(Bad::Checksum), Err(Bad::Blank)).is_err());
        assert!(choose(Err(Bad::Checksum), Err(Bad::Checksum)).is_err());
        assert!(choose(Ok(disk()), Err(Bad::Checksum)).unwrap().is_some());
    }

    #[test]
    fn another_format_is_refused_with_both_numbers_even_when_one_copy_is_ours() {
        let error = choose(Ok(disk()), Err(Bad::Format(2))).unwrap_err();
        assert_eq!(error.to_string(), "disk: format 2, this build reads format 1");
    }

    #[test]
    fn a_file_system_that_forgets_is_refused_before_anything_is_made() {
        let root = Path::new("/dev/shm").join(format!("hercules-{}", std::process::id()));
        if !Path::new("/dev/shm").exists() {
            return println!("SKIPPED: there is no /dev/shm here");
        }
        let refused = DiskLock::acquire(&root.join("data")).unwrap_err();
        assert!(refused.to_string().contains("tmpfs"), "{refused}");
        assert!(!root.exists(), "a refusal leaves nothing behind");
    }
}
