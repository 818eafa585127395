//! Every field of every page by name and offset, read without believing anything: a page that is
//! damaged shows what it holds. Pure.
//!
//! The tables repeat what [`super::super::page`] and [`super::super::header`] draw; tests hold each
//! against an encoded page, field by field.

use crate::store::header::{Flags, HISTORY};
use crate::store::layout::{CRC_PAGES, CRCS_PER_PAGE, Child, DEDUP_PAGES, DEDUP_PER_PAGE, MEMBERS_MAX};
use crate::store::page::Page;

/// How a field's bytes read.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A number.
    Number,
    /// A number that is easier to know in hexadecimal.
    Hex,
    /// Bytes as they lie.
    Bytes,
    /// The magic, as letters.
    Letters,
    /// Unix seconds.
    Time,
    /// A number with a name.
    Named(fn(u64) -> Option<String>),
    /// Must be zero.
    Zero,
}

/// A field: offset, length, name, how it reads.
type Field = (usize, usize, String, Kind);

/// A field of a page as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Offset in the page.
    pub at: usize,
    /// Bytes.
    pub len: usize,
    /// As the format calls it.
    pub name: String,
    /// For people.
    pub value: String,
    /// For programs, where it is a number.
    pub number: Option<u64>,
}

/// Pages with fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Disk,
    Ring,
    Header,
    Dedup,
    Crc,
    Record,
}

impl Layout {
    /// By the magic in front.
    pub(crate) fn of(page: &Page) -> Option<Self> {
        Some(match &page[..4] {
            b"HDSK" => Self::Disk,
            b"HRNG" => Self::Ring,
            b"HHDR" => Self::Header,
            b"HDUP" => Self::Dedup,
            b"HCRC" => Self::Crc,
            b"HREC" => Self::Record,
            _ => return None,
        })
    }

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disk => "DISK",
            Self::Ring => "RING",
            Self::Header => "HDR",
            Self::Dedup => "DEDUP",
            Self::Crc => "CRC",
            Self::Record => "record",
        }
    }
}

/// Collects fields one behind the other.
struct Table {
    fields: Vec<Field>,
    at: usize,
}

impl Table {
    fn add(&mut self, len: usize, name: impl Into<String>, kind: Kind) {
        self.fields.push((self.at, len, name.into(), kind));
        self.at += len;
    }

    fn u32(&mut self, name: impl Into<String>) {
        self.add(4, name, Kind::Number);
    }

    fn u64(&mut self, name: impl Into<String>) {
        self.add(8, name, Kind::Number);
    }
}

/// The fields of a layout, ascending and without gaps, up to where the page is zero.
fn table(layout: Layout) -> Vec<Field> {
    let mut table = Table { fields: Vec::new(), at: 0 };
    match layout {
        Layout::Record => record(&mut table),
        _ => {
            common(&mut table);
            match layout {
                Layout::Disk => disk(&mut table),
                Layout::Ring => ring(&mut table),
                Layout::Header => header(&mut table),
                Layout::Dedup => dedup(&mut table),
                Layout::Crc | Layout::Record => {
                    (0..CRCS_PER_PAGE).for_each(|index| table.add(4, format!("crc[{index}]"), Kind::Hex));
                }
            }
        }
    }
    table.fields
}

fn common(table: &mut Table) {
    table.add(4, "magic", Kind::Letters);
    table.add(4, "crc", Kind::Hex);
    table.add(2, "format", Kind::Number);
    table.add(1, "kind", Kind::Number);
    table.add(1, "index", Kind::Number);
    table.u32("number");
    table.add(16, "disk_uuid", Kind::Bytes);
    table.u64("page_seq");
    table.u64("boot_gen");
    table.add(8, "chunk", Kind::Hex);
    table.u64("lsn");
}

fn disk(table: &mut Table) {
    table.add(16, "cluster_uuid", Kind::Bytes);
    table.u32("server_id");
    table.add(4, "state", Kind::Named(disk_state));
    for name in ["rings", "slots"] {
        table.u32(name);
    }
    table.u64("ring_bytes");
    for name in ["chunk_capacity", "block_size", "incompat", "ro_compat", "master_term", "eio_count"] {
        table.u32(name);
    }
    table.add(8, "zero", Kind::Zero);
    table.add(8, "eio_last", Kind::Time);
    table.add(8, "created", Kind::Time);
}

fn ring(table: &mut Table) {
    table.add(4, "state", Kind::Named(ring_state));
    table.add(4, "start_prev_crc", Kind::Hex);
    for name in ["start_off", "log_bytes", "durable_upto"] {
        table.u64(name);
    }
}

fn header(table: &mut Table) {
    table.add(1, "state", Kind::Named(slot_state));
    table.add(1, "prior_state", Kind::Named(slot_state));
    table.add(2, "flags", Kind::Named(flags));
    for name in ["epoch", "promised_epoch", "durable_len", "committed_len", "sealed_len"] {
        table.u32(name);
    }
    for name in ["last_seq", "committed_seq", "suspect_seq"] {
        table.u64(name);
    }
    table.add(16, "sealed_digest", Kind::Bytes);
    table.u32("written_upto");
    table.u32("tail_len");
    table.add(4, "tail_crc", Kind::Hex);
    table.add(4, "child_copy", Kind::Named(children));
    table.add(4, "child_present", Kind::Named(children));
    (0..DEDUP_PAGES).for_each(|index| table.add(4, format!("dedup_crc[{index}]"), Kind::Hex));
    (0..CRC_PAGES).for_each(|index| table.add(4, format!("crc_page_crc[{index}]"), Kind::Hex));
    table.add(8, "prev_chunk", Kind::Hex);
    table.u64("file_id");
    table.u64("authority");
    table.add(8, "condemned_at", Kind::Time);
    table.add(2, "dedup_count", Kind::Number);
    table.add(1, "member_count", Kind::Number);
    table.add(1, "my_position", Kind::Number);
    table.u32("master_term");
    (0..MEMBERS_MAX).for_each(|index| table.u32(format!("members[{index}]")));
    for index in 0..HISTORY {
        table.u32(format!("epoch_history[{index}].epoch"));
        table.u32(format!("epoch_history[{index}].start_len"));
        table.u64(format!("epoch_history[{index}].start_seq"));
    }
    table.u64("last_overwrite_seq");
}

fn dedup(table: &mut Table) {
    table.add(2, "count", Kind::Number);
    table.add(30, "zero", Kind::Zero);
    for index in 0..DEDUP_PER_PAGE {
        table.add(16, format!("entry[{index}].stream"), Kind::Bytes);
        table.u64(format!("entry[{index}].op"));
        table.add(8, format!("entry[{index}].chunk"), Kind::Hex);
        table.u32(format!("entry[{index}].offset"));
        table.u32(format!("entry[{index}].length"));
    }
}

fn record(table: &mut Table) {
    table.add(4, "magic", Kind::Letters);
    table.add(4, "crc", Kind::Hex);
    table.u64("lsn");
    table.u64("boot_gen");
    table.add(4, "prev_crc", Kind::Hex);
    table.u32("body_len");
    table.u32("span");
    table.add(1, "type", Kind::Named(super::journal::type_name));
    table.add(1, "flags", Kind::Named(record_flags));
    table.add(2, "zero", Kind::Zero);
    table.u64("durable_upto");
    table.add(8, "chunk", Kind::Hex);
    table.u32("slot");
    table.u32("epoch");
}

/// The fields of a page; those of arrays that are zero are left out.
pub(crate) fn show(layout: Layout, page: &Page) -> Vec<Shown> {
    table(layout).into_iter().filter_map(|(at, len, name, kind)| shown(page, at, len, name, kind)).collect()
}

fn shown(page: &Page, at: usize, len: usize, name: String, kind: Kind) -> Option<Shown> {
    let bytes = &page[at..at + len];
    let empty = bytes.iter().all(|byte| *byte == 0);
    let element = name.contains('[');
    if empty && (element || matches!(kind, Kind::Zero)) {
        return None;
    }
    let number = (len <= 8).then(|| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    let hex = || bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
    let value = match (kind, number) {
        (Kind::Letters, _) => String::from_utf8_lossy(bytes).escape_default().to_string(),
        (Kind::Hex, _) => hex(),
        (Kind::Named(of), Some(number)) => of(number).map_or(format!("{number} ?"), |said| format!("{number} {said}")),
        (Kind::Number | Kind::Time, Some(number)) => number.to_string(),
        (Kind::Zero, _) => format!("{}: it must be zero", hex()),
        (Kind::Bytes, _) | (_, None) => plain(bytes),
    };
    let number = number.filter(|_| !matches!(kind, Kind::Letters | Kind::Zero));
    Some(Shown { at, len, name, value: value.trim_end().to_owned(), number })
}

/// Bytes in the order in which they lie.
pub(crate) fn plain(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn disk_state(number: u64) -> Option<String> {
    named(number, &["NORMAL", "FENCED", "DRAINING", "RETIRED"])
}

fn ring_state(number: u64) -> Option<String> {
    named(number, &["in use", "out of use"])
}

pub(crate) fn slot_state(number: u64) -> Option<String> {
    named(number, &["FREE", "OPEN", "RWR", "SEALED", "CONDEMNED"])
}

fn named(number: u64, names: &[&str]) -> Option<String> {
    Some((*names.get(usize::try_from(number).ok()?)?).to_owned())
}

pub(crate) fn flags(number: u64) -> Option<String> {
    let names = [
        (Flags::FIXED, "FIXED"),
        (Flags::FILLED, "FILLED"),
        (Flags::SUSPECT, "SUSPECT"),
        (Flags::SHARED, "SHARED"),
        (Flags::DAMAGED, "DAMAGED"),
        (Flags::CLOSED, "CLOSED"),
        (Flags::QUARANTINED, "QUARANTINED"),
    ];
    bits(number, names.map(|(bit, name)| (u64::from(bit), name.to_owned())))
}

fn record_flags(number: u64) -> Option<String> {
    bits(number, [(1, "FILL".to_owned()), (2, "first".to_owned())])
}

fn children(number: u64) -> Option<String> {
    let all = (0..CRC_PAGES).map(Child::Crc).chain([Child::Tail]).chain((0..DEDUP_PAGES).map(Child::Dedup));
    bits(number, all.map(|child| (u64::from(child.bit()), crate::store::check::name(child))))
}

/// The names of bits that are set; `None` when one has no name.
fn bits(number: u64, names: impl IntoIterator<Item = (u64, String)>) -> Option<String> {
    let (mut left, mut said) = (number, Vec::new());
    for (bit, name) in names.into_iter().filter(|(bit, _)| number & bit != 0) {
        left &= !bit;
        said.push(name);
    }
    (left == 0).then(|| said.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::header::HDR_END;
    use crate::store::header::tests::sample;
    use crate::store::layout::PAGE;
    use crate::store::page::{COMMON_LEN, DISK_END, RING_END};
    use crate::store::record::HEAD_LEN;

    #[test]
    fn every_table_covers_its_page_without_a_gap() {
        let ends = [
            (Layout::Disk, DISK_END),
            (Layout::Ring, RING_END),
            (Layout::Header, HDR_END),
            (Layout::Dedup, PAGE),
            (Layout::Crc, PAGE),
            (Layout::Record, HEAD_LEN),
        ];
        for (layout, end) in ends {
            let mut at = 0;
            for (start, len, name, _) in table(layout) {
                assert_eq!(start, at, "{layout:?} {name}");
                at += len;
            }
            assert_eq!(at, end, "{layout:?}");
        }
        let mut common_only = Table { fields: Vec::new(), at: 0 };
        common(&mut common_only);
        assert_eq!(common_only.at, COMMON_LEN);
    }

    /// Each name stands where the encoder puts that field.
    #[test]
    fn the_fields_of_a_header_are_where_they_are_written() {
        let hdr = sample();
        let page = hdr.encode();
        let shown = show(Layout::Header, &page);
        let of = |name: &str| shown.iter().find(|field| field.name == name).unwrap_or_else(|| panic!("no {name}"));
        let numbers = [
            ("number", u64::from(hdr.common.number)),
            ("page_seq", hdr.common.page_seq),
            ("boot_gen", hdr.common.boot_gen),
            ("chunk", hdr.common.chunk),
            ("lsn", hdr.common.lsn),
            ("epoch", hdr.epoch.0.into()),
            ("promised_epoch", hdr.promised.0.into()),
            ("durable_len", hdr.durable_len.into()),
            ("committed_len", hdr.committed_len.into()),
            ("sealed_len", hdr.sealed_len.into()),
            ("last_seq", hdr.last_seq),
            ("committed_seq", hdr.committed_seq),
            ("suspect_seq", hdr.suspect_seq),
            ("written_upto", hdr.written_upto.into()),
            ("tail_len", hdr.tail_len.into()),
            ("tail_crc", hdr.tail_crc.into()),
            ("dedup_crc[3]", hdr.dedup_crc[3].into()),
            ("crc_page_crc[16]", hdr.crc_page_crc[16].into()),
            ("prev_chunk", hdr.prev.0),
            ("file_id", hdr.file.0),
            ("authority", hdr.authority),
            ("condemned_at", hdr.condemned_at),
            ("dedup_count", hdr.dedup_count.into()),
            ("member_count", 2),
            ("my_position", hdr.my_position.into()),
            ("master_term", hdr.master_term.into()),
            ("members[1]", hdr.members[1].0.into()),
            ("epoch_history[0].start_seq", hdr.history[0].start_seq),
            ("last_overwrite_seq", hdr.last_overwrite_seq),
        ];
        for (name, number) in numbers {
            assert_eq!(of(name).number, Some(number), "{name}");
        }
        assert_eq!((of("magic").value.as_str(), of("state").value.as_str()), ("HHDR", "4 CONDEMNED"));
        assert_eq!(of("flags").value, "34 FILLED, CLOSED");
        assert_eq!(of("child_copy").value, "28 CRC 2, CRC 3, CRC 4");
        assert_eq!(of("sealed_digest").value, "18".repeat(16));
        assert!(!shown.iter().any(|field| field.name == "members[2]"), "what an array does not use is left out");
    }

    #[test]
    fn what_cannot_be_is_shown_and_said() {
        let mut page = sample().encode();
        (page[64], page[67]) = (9, 0x80);
        let shown = show(Layout::Header, &page);
        let of = |name: &str| shown.iter().find(|field| field.name == name).unwrap().value.clone();
        assert_eq!((of("state").as_str(), of("flags").as_str()), ("9 ?", "32802 ?"));
        let mut page = [0; PAGE];
        (page[128], page[136]) = (7, 1);
        let shown = show(Layout::Disk, &page);
        let zero = shown.iter().find(|field| field.name == "zero").unwrap();
        assert_eq!((zero.at, zero.value.as_str()), (128, "0000000000000007: it must be zero"));
    }
}
