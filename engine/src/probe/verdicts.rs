//! What the facts mean. No I/O.

use std::io;

use super::Check;
use super::mount::Mount;
use crate::runtime::{Backend, glommio, uring};

const MIB: u64 = 1 << 20;
/// Locked memory of one shard's rings, generously: three of glommio's, one of monoio's.
const GLOMMIO_RINGS: u64 = 128 << 10;
const MONOIO_RING: u64 = 64 << 10;
/// glommio does not start below this limit, whatever it needs.
const GLOMMIO_MEMLOCK_MIN: u64 = 512 << 10;
/// Descriptors: one per connection, one per open slot.
const OPEN_FILES_MIN: u64 = 1024;
const OPEN_FILES_GOOD: u64 = 16_384;
/// Journals: 512 MiB in all, at least 64 MiB a shard; and a first slot for each shard.
const JOURNALS: u64 = 512 * MIB;
const JOURNAL_MIN: u64 = 64 * MIB;
const SLOT: u64 = 65 * MIB;

const MEMLOCK_REMEDY: &str = "raise memlock (`ulimits: memlock: -1`, or LimitMEMLOCK=infinity)";
const FOLDER_REMEDY: &str = "put the data folder on a local ext4 or XFS file system (in a container: a named \
    volume or a bind mount of one)";

pub(super) fn io_uring(backend: Backend, refused: Option<&io::Error>) -> Check {
    const NAME: &str = "io-uring";
    match refused {
        None => Check::ok(NAME, "allowed"),
        Some(error) if !backend.needs_io_uring() => {
            Check::ok(NAME, format!("{} does not need it ({})", backend, short(error)))
        }
        Some(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::failed(NAME, "not allowed", uring::REMEDY)
        }
        Some(error) => Check::failed(NAME, error.to_string(), uring::REMEDY),
    }
}

fn short(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "it is not allowed" } else { "it does not work" }
}

pub(super) fn kernel(backend: Backend, release: &str) -> Check {
    const NAME: &str = "kernel";
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Check::warning(NAME, format!("{release:?} is no version"), "Linux 6.1 or newer is tested");
    };
    match (major, minor) {
        (6.., 1..) | (7.., _) => Check::ok(NAME, release),
        (5, 11..) | (6.., _) => Check::warning(NAME, release, "Linux 6.1 or newer is tested"),
        _ if backend.needs_io_uring() => {
            Check::failed(NAME, release, "its io_uring is too old: Linux 5.11 at least, 6.1 or newer is tested")
        }
        _ => Check::warning(NAME, release, "Linux 6.1 or newer is tested"),
    }
}

/// `limit`: bytes this process may lock, `None` for any number.
pub(super) fn memlock(backend: Backend, shards: u32, memory_per_shard: u64, limit: Option<u64>) -> Check {
    const NAME: &str = "memlock";
    let Some(limit) = limit else { return Check::ok(NAME, "unlimited") };
    let found = format!("{} KiB, shared by all processes of this user", limit >> 10);
    let shards = u64::from(shards);
    let rings = shards * if backend == Backend::Glommio { GLOMMIO_RINGS } else { MONOIO_RING };
    let least = if backend == Backend::Glommio { rings.max(GLOMMIO_MEMLOCK_MIN) } else { rings };
    if backend.needs_io_uring() && limit < least {
        return Check::failed(NAME, found, format!("the rings need {} KiB: {MEMLOCK_REMEDY}", least >> 10));
    }
    // glommio registers its arena with each of its three rings.
    let registered = rings + shards * 3 * glommio::arena(memory_per_shard);
    if backend == Backend::Glommio && limit < registered {
        let remedy = format!(
            "registering buffers needs {} MiB; without, the disk costs more CPU: {MEMLOCK_REMEDY}",
            registered.div_ceil(MIB)
        );
        return Check::warning(NAME, found, remedy);
    }
    Check::ok(NAME, found)
}

/// Rule R12: `limit` as in [`memlock`].
pub(super) fn memory_lock(limit: Option<u64>) -> Check {
    const NAME: &str = "memory-lock";
    match limit {
        None => Check::ok(NAME, "memory is locked: none of it is swapped out"),
        Some(limit) => {
            let found = format!("memory is not locked, because only {} KiB may be: it can be swapped out", limit >> 10);
            Check::warning(NAME, found, MEMLOCK_REMEDY)
        }
    }
}

/// `tried`: what came of registering a small buffer, `None` without io_uring.
pub(super) fn registration(backend: Backend, tried: Option<Result<&(), &io::Error>>) -> Check {
    const NAME: &str = "registered-buffers";
    match tried {
        _ if backend != Backend::Glommio => Check::ok(NAME, format!("{backend} does not use them")),
        Some(Ok(())) => Check::ok(NAME, "possible, within memlock"),
        Some(Err(error)) => Check::warning(NAME, format!("refused ({error})"), MEMLOCK_REMEDY),
        None => Check::warning(NAME, "not tried: io_uring is not allowed", ""),
    }
}

pub(super) fn open_files(limit: Option<u64>) -> Check {
    const NAME: &str = "open-files";
    let remedy = format!("raise nofile to at least {OPEN_FILES_GOOD} (`ulimits: nofile: 65536`, or LimitNOFILE=65536)");
    match limit {
        None => Check::ok(NAME, "unlimited"),
        Some(limit) if limit < OPEN_FILES_MIN => Check::failed(NAME, limit.to_string(), remedy),
        Some(limit) if limit < OPEN_FILES_GOOD => Check::warning(NAME, limit.to_string(), remedy),
        Some(limit) => Check::ok(NAME, limit.to_string()),
    }
}

pub(super) fn direct_io(tried: io::Result<()>) -> Check {
    const NAME: &str = "direct-io";
    match tried {
        Ok(()) => Check::ok(NAME, "a block was written and read back"),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Check::failed(NAME, "the file system has no direct I/O in blocks of 4 KiB", FOLDER_REMEDY)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::failed(NAME, error.to_string(), "make the data folder writable for this user")
        }
        Err(error) => Check::failed(NAME, error.to_string(), "look at the disk and at the kernel's log (dmesg)"),
    }
}

pub(super) fn file_system(mount: Option<&Mount>) -> Check {
    const NAME: &str = "file-system";
    let Some(mount) = mount else { return Check::warning(NAME, "unknown", FOLDER_REMEDY) };
    let kind = mount.kind.as_str();
    match kind {
        "ext4" | "xfs" => Check::ok(NAME, kind),
        "tmpfs" | "ramfs" | "overlay" | "nfs" | "nfs4" | "fuse" | "fuseblk" => {
            Check::failed(NAME, format!("{kind} does not keep its promises after a power cut"), FOLDER_REMEDY)
        }
        _ if kind.starts_with("fuse.") => {
            Check::failed(NAME, format!("{kind} does not keep its promises after a power cut"), FOLDER_REMEDY)
        }
        _ => Check::warning(NAME, format!("{kind} is not tested"), FOLDER_REMEDY),
    }
}

pub(super) fn barriers(mount: Option<&Mount>) -> Check {
    const NAME: &str = "barriers";
    let off =
        mount.and_then(|mount| mount.options.iter().find(|option| *option == "nobarrier" || *option == "barrier=0"));
    match (off, mount) {
        (Some(option), _) => Check::failed(
            NAME,
            format!("mounted with {option}: a power cut loses what was acknowledged"),
            "mount without it",
        ),
        (None, Some(_)) => Check::ok(NAME, "on"),
        (None, None) => Check::warning(NAME, "mount not found", "see that it is mounted without nobarrier"),
    }
}

pub(super) fn write_cache(setting: Option<&str>) -> Check {
    const NAME: &str = "write-cache";
    match setting {
        Some("write through") => Check::ok(NAME, "write through: a flush costs nothing"),
        Some("write back") => Check::ok(NAME, "write back: each group of commits pays a flush"),
        Some(other) => Check::warning(NAME, format!("{other:?}"), "see that the disk keeps what it has flushed"),
        None => Check::warning(NAME, "block device not found", "see that the disk keeps what it has flushed"),
    }
}

/// `free`: bytes for this user; a formatted disk has its journals already.
pub(super) fn free_space(free: io::Result<u64>, formatted: bool, shards: u32) -> Check {
    const NAME: &str = "free-space";
    let shards = u64::from(shards);
    let needed = JOURNALS.max(shards * JOURNAL_MIN) + shards * SLOT;
    let remedy = format!("free {} MiB for journals and first slots", needed / MIB);
    match free {
        Err(error) => Check::failed(NAME, error.to_string(), "look at the disk and at the kernel's log (dmesg)"),
        Ok(free) if free >= needed => Check::ok(NAME, format!("{} MiB", free / MIB)),
        Ok(free) if formatted => Check::warning(NAME, format!("{} MiB", free / MIB), "no new chunks fit here"),
        Ok(free) => Check::failed(NAME, format!("{} MiB", free / MIB), remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Failed, Ok as Fine, Warning};
    use super::*;
    use Backend::{Glommio, Monoio, MonoioEpoll};

    fn mount(kind: &str, options: &str) -> Mount {
        Mount { kind: kind.into(), options: options.split(',').map(str::to_owned).collect() }
    }

    #[test]
    fn refused_io_uring_fails_unless_it_is_not_needed_and_names_the_remedies() {
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        for backend in [Glommio, Monoio] {
            let check = io_uring(backend, Some(&refused));
            assert_eq!(check.verdict, Failed);
            for remedy in ["kernel.io_uring_disabled", "security_opt: seccomp=docker/seccomp.json", "monoio-epoll"] {
                assert!(check.remedy.contains(remedy), "{}", check.remedy);
            }
            assert_eq!(io_uring(backend, None).verdict, Fine);
        }
        assert_eq!(io_uring(MonoioEpoll, Some(&refused)).verdict, Fine);
    }

    #[test]
    fn old_kernels_fail_where_io_uring_is_needed() {
        let of = |backend, release| kernel(backend, release).verdict;
        for release in ["6.1.0-18-amd64", "6.18.44-fc", "7.0.1", "6.12-rc1"] {
            assert_eq!(of(Glommio, release), Fine, "{release}");
        }
        for release in ["5.11.0", "5.15.0-generic", "6.0.9"] {
            assert_eq!(of(Glommio, release), Warning, "{release}");
        }
        assert_eq!((of(Monoio, "5.4.0"), of(MonoioEpoll, "5.4.0")), (Failed, Warning));
        assert_eq!(of(Glommio, "plan9"), Warning);
    }

    #[test]
    fn too_little_memlock_for_rings_fails_and_for_buffers_warns() {
        let of = |backend, shards, limit| memlock(backend, shards, 16 * MIB, limit).verdict;
        assert_eq!(of(Glommio, 4, None), Fine);
        // Four shards register 3 x 32 MiB each.
        assert_eq!(of(Glommio, 4, Some(385 * MIB)), Fine);
        assert_eq!(of(Glommio, 4, Some(384 * MIB)), Warning);
        assert_eq!(of(Glommio, 4, Some(512 << 10)), Warning);
        assert_eq!(of(Glommio, 1, Some((512 << 10) - 1)), Failed);
        assert_eq!(of(Glommio, 32, Some(2 * MIB)), Failed);
        assert_eq!(of(Monoio, 32, Some(2 * MIB)), Fine);
        assert_eq!(of(Monoio, 33, Some(2 * MIB)), Failed);
        assert_eq!(of(MonoioEpoll, 32, Some(0)), Fine);
        assert!(memlock(Glommio, 4, 16 * MIB, Some(8 * MIB)).remedy.contains("385 MiB"));
    }

    #[test]
    fn unregistered_buffers_are_reported_where_they_would_be_used() {
        let refused = io::Error::from_raw_os_error(libc::ENOMEM);
        assert_eq!(registration(Glommio, Some(Err(&refused))).verdict, Warning);
        assert_eq!(registration(Glommio, Some(Ok(&()))).verdict, Fine);
        assert_eq!(registration(Glommio, None).verdict, Warning);
        assert_eq!(registration(Monoio, Some(Err(&refused))).verdict, Fine);
    }

    #[test]
    fn only_file_systems_that_keep_what_they_promise_pass() {
        let of = |kind: &str| file_system(Some(&mount(kind, "rw"))).verdict;
        assert_eq!((of("ext4"), of("xfs")), (Fine, Fine));
        for kind in ["tmpfs", "ramfs", "overlay", "nfs", "nfs4", "fuse", "fuse.sshfs", "fuseblk"] {
            assert_eq!(of(kind), Failed, "{kind}");
        }
        assert_eq!((of("btrfs"), of("fusex")), (Warning, Warning));
        assert_eq!(file_system(None).verdict, Warning);
    }

    #[test]
    fn a_mount_without_barriers_fails() {
        let of = |options: &str| barriers(Some(&mount("ext4", options))).verdict;
        assert_eq!((of("rw,nobarrier"), of("rw,barrier=0,noatime")), (Failed, Failed));
        assert_eq!((of("rw,barrier=1"), of("rw")), (Fine, Fine));
        assert_eq!(barriers(None).verdict, Warning);
    }

    #[test]
    fn direct_io_errors_say_what_to_do() {
        let of = |errno| direct_io(Err(io::Error::from_raw_os_error(errno)));
        assert!(of(libc::EINVAL).remedy.contains("XFS"));
        assert!(of(libc::EACCES).remedy.contains("writable"));
        assert!(of(libc::EIO).remedy.contains("dmesg"));
        assert_eq!((of(libc::EIO).verdict, direct_io(Ok(())).verdict), (Failed, Fine));
    }

    #[test]
    fn space_for_journals_and_first_slots_is_needed_once() {
        let needed = 512 * MIB + 2 * SLOT;
        let of = |free, formatted, shards| free_space(Ok(free), formatted, shards).verdict;
        assert_eq!((of(needed, false, 2), of(needed - 1, false, 2)), (Fine, Failed));
        assert_eq!((of(needed, false, 3), of(0, true, 3)), (Failed, Warning));
    }

    #[test]
    fn few_descriptors_warn_and_very_few_fail() {
        let of = |limit| open_files(limit).verdict;
        assert_eq!([of(None), of(Some(16_384)), of(Some(16_383)), of(Some(1023))], [Fine, Fine, Warning, Failed]);
    }

    #[test]
    fn an_unknown_write_cache_warns() {
        let of = |setting| write_cache(setting).verdict;
        assert_eq!(
            [of(Some("write through")), of(Some("write back")), of(Some("x")), of(None)],
            [Fine, Fine, Warning, Warning]
        );
    }
}
