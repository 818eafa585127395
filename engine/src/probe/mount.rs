//! Which mount a folder is on, from the text of `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What a folder is mounted from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// `ext4`, `xfs`, ...
    pub(super) kind: String,
    /// Options of the mount and of the file system.
    pub(super) options: Vec<String>,
}

/// The mount that a canonical path is on: the longest mount point above it, the last one of these.
pub(super) fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(parse).filter(|(point, _)| path.starts_with(point));
    mounts.max_by_key(|(point, _)| point.components().count()).map(|(_, mount)| mount)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` (proc(5)).
fn parse(line: &str) -> Option<(PathBuf, Mount)> {
    let (mount, system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(4);
    let (point, options) = (mount.next()?, mount.next()?);
    let mut system = system.split(' ');
    let kind = system.next()?.to_owned();
    let more = system.nth(1).unwrap_or("");
    let options = options.split(',').chain(more.split(',')).filter(|option| !option.is_empty());
    Some((unescape(point), Mount { kind, options: options.map(str::to_owned).collect() }))
}

/// Blanks in names are written as `\040`, likewise tabs, newlines and backslashes.
fn unescape(name: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:27 / /dev/shm rw - tmpfs tmpfs rw,size=1k
41 27 8:1 / /data rw,noatime shared:7 master:2 - xfs /dev/sda1 rw,attr2
42 41 8:2 / /data/a\\040b rw - ext4 /dev/sda2 rw,nobarrier
43 41 8:3 / /data/over rw - ext4 /dev/sda3 rw
44 43 0:33 / /data/over rw - overlay overlay rw
garbage
";

    fn kind(path: &str) -> String {
        mount_of(MOUNTS, Path::new(path)).unwrap().kind
    }

    #[test]
    fn the_longest_mount_point_wins_and_of_equal_ones_the_last() {
        assert_eq!(kind("/"), "ext4");
        assert_eq!(kind("/dev/shm/x"), "tmpfs");
        assert_eq!(kind("/data"), "xfs");
        assert_eq!(kind("/database"), "ext4");
        assert_eq!(kind("/data/over/x"), "overlay");
        assert_eq!(mount_of("", Path::new("/")), None);
    }

    #[test]
    fn options_of_mount_and_file_system_are_joined_and_names_unescaped() {
        let mount = mount_of(MOUNTS, Path::new("/data/a b/slots")).unwrap();
        assert_eq!(mount.options, ["rw", "rw", "nobarrier"]);
        let mount = mount_of(MOUNTS, Path::new("/data/x")).unwrap();
        assert_eq!(mount.options, ["rw", "noatime", "rw", "attr2"]);
    }
}
