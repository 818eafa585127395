//! Bytes that this machine's disks were given, from `/proc/diskstats`.

use std::collections::BTreeSet;
use std::fs;

/// `/proc/diskstats` counts in sectors of 512 bytes, whatever the disk's own are.
const SECTOR_LEN: u64 = 512;

/// Bytes written to all physical disks since the machine started; `None` where Linux does not say.
///
/// Everything that writes on this machine is counted, so on a busy one it is an upper bound.
#[must_use]
pub fn bytes_written() -> Option<u64> {
    let disks = fs::read_dir("/sys/block").ok()?;
    let disks: BTreeSet<String> =
        disks.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| is_physical(name)).collect();
    let stats = fs::read_to_string("/proc/diskstats").ok()?;
    sectors_written(&stats, &disks).and_then(|sectors| sectors.checked_mul(SECTOR_LEN))
}

/// Loop devices, device-mapper and MD lie on top of disks that are counted already; the others are memory.
fn is_physical(name: &str) -> bool {
    !["loop", "ram", "zram", "dm-", "md", "sr", "fd"].iter().any(|prefix| name.starts_with(prefix))
}

/// Field 10 of the lines of `disks`, added; `None` when there is no such line.
fn sectors_written(stats: &str, disks: &BTreeSet<String>) -> Option<u64> {
    let written = stats.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(2);
        let name = fields.next()?;
        let sectors = fields.nth(6)?.parse::<u64>().ok()?;
        disks.contains(name).then_some(sectors)
    });
    written.fold(None, |sum: Option<u64>, sectors| Some(sum.unwrap_or(0).saturating_add(sectors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = "   7       0 loop0 1 2 3 4 5 6 700 8 9 10 11\n\
        254       0 vda 21 0 168 7 30 40 5000 60 0 70 80 0 0 0 0 1 2\n\
        254       1 vda1 21 0 168 7 30 40 4000 60 0 70 80\n 259 0 nvme0n1 1 1 1 1 1 1 9 1\n";

    #[test]
    fn whole_physical_disks_are_counted_once() {
        let disks = ["vda", "nvme0n1"].map(String::from).into();
        assert_eq!(sectors_written(STATS, &disks), Some(5009));
        assert!(is_physical("vda") && is_physical("nvme0n1") && !is_physical("loop3") && !is_physical("dm-0"));
    }

    #[test]
    fn no_disk_is_unknown_and_not_zero() {
        assert_eq!(sectors_written(STATS, &BTreeSet::new()), None);
    }
}
