//! How `inspect` reads: tables for people, objects for programs.

use benches::report::size;
use engine::store::inspect::{Overview, PageShown, RecordLine, RecordsEnd, RingLine, Shown, SlotLine, SlotShown};
use serde_json::{Map, Value, json};
use wire::ChunkHandle;

use super::fsck_layout::journal_end;
use crate::output::table;

/// Bytes in a line of a dump, and of a page that has no fields.
const DUMP_LINE: usize = 16;
const DUMP_BYTES: usize = 256;

/// What a copy is worth.
fn health(page: &PageShown, is_current: bool) -> String {
    match (&page.wrong, is_current) {
        (Some(why), _) => why.clone(),
        (None, true) => "valid, counts".into(),
        (None, false) => "valid".into(),
    }
}

/// The disk at a glance.
#[must_use]
pub(super) fn overview(found: &Overview) -> String {
    let mut parts = vec![copies(&found.disk, found.current)];
    let mut rows = vec![header(&["JOURNAL", "RECORDS", "FIRST", "LAST", "FLUSHED", "USED", "OF", "END"])];
    rows.extend(found.rings.iter().map(ring_row));
    parts.push(table(&rows, &[1, 2, 3, 4, 5, 6]));
    let states: Vec<String> = found.by_state().into_iter().map(|(state, count)| format!("{count} {state}")).collect();
    parts.push(format!("slots: {}", if states.is_empty() { "none".into() } else { states.join(", ") }));
    let shown = |slot: &&SlotLine| slot.state != "FREE" || slot.wrong.iter().any(Option::is_some);
    let mut rows = vec![header(&["SLOT", "CHUNK", "STATE", "EPOCH", "LENGTH", "COMMITTED", "UP TO", "FLAGS", ""])];
    rows.extend(found.slots.iter().filter(shown).map(slot_row));
    if rows.len() > 1 {
        parts.push(table(&rows, &[0, 3, 4, 5, 6]));
    }
    parts.join("\n\n")
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ring_row(ring: &RingLine) -> Vec<String> {
    let wrong = wrong(&ring.wrong, "RING");
    let (records, last, end) = match &ring.records {
        Ok(end) => (end.records.to_string(), end.last_lsn.to_string(), journal_end(end.end).to_owned()),
        Err(why) => ("?".into(), "?".into(), why.clone()),
    };
    let end = if ring.retired { "out of use".into() } else { end };
    vec![
        ring.ring.to_string(),
        records,
        ring.first_lsn.to_string(),
        last,
        ring.durable_upto.to_string(),
        size(ring.used),
        size(ring.log_bytes),
        [vec![end], wrong].concat().join("; "),
    ]
}

fn slot_row(slot: &SlotLine) -> Vec<String> {
    let number = |value: u32| if slot.state == "?" { "?".into() } else { value.to_string() };
    vec![
        slot.slot.to_string(),
        if slot.chunk == 0 { "-".into() } else { ChunkHandle(slot.chunk).to_string() },
        slot.state.clone(),
        number(slot.epoch),
        number(slot.len),
        number(slot.committed_len),
        slot.ckpt_lsn.to_string(),
        if slot.flags.is_empty() { "-".into() } else { slot.flags.clone() },
        wrong(&slot.wrong, "header").join("; "),
    ]
}

/// Bad copies, each with its reason.
fn wrong(copies: &[Option<String>; 2], name: &str) -> Vec<String> {
    let bad = copies.iter().zip(["A", "B"]);
    bad.filter_map(|(why, copy)| Some(format!("{name} {copy}: {}", why.as_ref()?))).collect()
}

/// Two copies of a root side by side; `*` marks fields that differ.
fn copies(pages: &[PageShown; 2], current: Option<usize>) -> String {
    let [a, b] = pages;
    let name = a.kind;
    let mut text = vec![
        format!("{name} A  {}", health(a, current == Some(0))),
        format!("{name} B  {}", health(b, current == Some(1))),
    ];
    let mut rows = Vec::new();
    let mut names: Vec<(usize, &str)> =
        a.fields.iter().chain(&b.fields).map(|field| (field.at, field.name.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    for (at, name) in names {
        let value = |page: &PageShown| field(&page.fields, name).map_or("-".to_owned(), |field| field.value.clone());
        let (left, right) = (value(a), value(b));
        let mark = if left == right { "" } else { "*" };
        let right = if left == right && !b.fields.is_empty() { "=".into() } else { right };
        rows.push(vec![at.to_string(), name.to_owned(), left, right, mark.into()]);
    }
    if !rows.is_empty() {
        rows.insert(0, header(&["AT", "FIELD", "A", "B", ""]));
        text.push(table(&rows, &[0]));
    }
    text.join("\n")
}

fn field<'a>(fields: &'a [Shown], name: &str) -> Option<&'a Shown> {
    fields.iter().find(|field| field.name == name)
}

/// A slot in full.
#[must_use]
pub(super) fn slot(found: &SlotShown) -> String {
    let mut parts = vec![format!("slot {}", found.slot), copies(&found.headers, found.current)];
    if !found.children.is_empty() {
        let mut rows = vec![header(&["CHILD", "COPY", "AT", "FOUND"])];
        rows.extend(found.children.iter().map(|child| {
            let state = child.wrong.clone().unwrap_or_else(|| "as the header names it".into());
            vec![child.name.clone(), child.copy.to_string(), format!("{:#x}", child.offset), state]
        }));
        parts.push(table(&rows, &[]));
    }
    if !found.crcs.is_empty() {
        let mut rows = vec![header(&["CRC PAGE", "BLOCKS", "CRC OVER THEM"])];
        let crcs = found.crcs.iter();
        rows.extend(crcs.map(|(page, used, crc)| vec![page.to_string(), used.to_string(), format!("{crc:08x}")]));
        parts.push(table(&rows, &[0, 1]));
    }
    if !found.dedup.is_empty() {
        let mut rows = vec![header(&["STREAM", "OPERATION", "CHUNK", "OFFSET", "LENGTH"])];
        rows.extend(found.dedup.iter().map(|entry| {
            let (id, chunk) = (entry.id, entry.chunk.to_string());
            vec![id.stream.to_string(), id.op.to_string(), chunk, entry.offset.to_string(), entry.len.to_string()]
        }));
        parts.push(table(&rows, &[1, 3, 4]));
    }
    parts.join("\n\n")
}

/// Records, one line each, and how they end.
#[must_use]
pub(super) fn journal(records: &[RecordLine], end: &RecordsEnd) -> String {
    let mut rows = vec![header(&["LSN", "AT", "TYPE", "CHUNK", "SLOT", "EPOCH", "FLUSHED", "SAYS"])];
    rows.extend(records.iter().map(|record| {
        let kind = if record.fill { format!("{} FILL", record.kind) } else { record.kind.clone() };
        vec![
            record.lsn.to_string(),
            format!("{:#x}{}", record.offset, if record.first { "" } else { " +" }),
            kind,
            if record.chunk == 0 { "-".into() } else { ChunkHandle(record.chunk).to_string() },
            record.slot.map_or("-".into(), |slot| slot.to_string()),
            record.epoch.to_string(),
            record.durable_upto.to_string(),
            record.says.clone(),
        ]
    }));
    let shown = format!("{} of {} records are shown", records.len(), end.records);
    let last = format!("the last is {}, flushed up to {}: {}", end.last_lsn, end.proven_lsn, journal_end(end.end));
    format!("{}\n{shown}; {last}", table(&rows, &[0, 4, 5, 6]))
}

/// A page, field by field, or its first bytes.
#[must_use]
pub(super) fn page(found: &PageShown) -> String {
    let state = match (&found.wrong, found.kind) {
        (Some(why), _) => why.clone(),
        (None, "data" | "TAIL" | "record") => "nothing here says what it should be".into(),
        (None, _) => "valid".into(),
    };
    let what = format!("{} at {:#x}: {}, {state}; crc {:08x}", found.file, found.offset, found.kind, found.crc);
    if found.fields.is_empty() {
        return format!("{what}\n{}", dump(&found.bytes));
    }
    let mut rows = vec![header(&["AT", "BYTES", "FIELD", "VALUE"])];
    let fields = found.fields.iter();
    rows.extend(fields.map(|f| vec![f.at.to_string(), f.len.to_string(), f.name.clone(), f.value.clone()]));
    format!("{what}\n{}", table(&rows, &[0, 1]))
}

fn dump(bytes: &[u8]) -> String {
    let lines = bytes[..bytes.len().min(DUMP_BYTES)].chunks(DUMP_LINE).enumerate().map(|(index, line)| {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String =
            line.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' }).collect();
        format!("{:4}  {}  {text}", index * DUMP_LINE, hex.join(" "))
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn fields_json(fields: &[Shown]) -> Value {
    let value = |field: &Shown| field.number.map_or_else(|| json!(field.value), |number| json!(number));
    Value::Object(fields.iter().map(|field| (field.name.clone(), value(field))).collect::<Map<_, _>>())
}

/// A page.
#[must_use]
pub(super) fn page_json(found: &PageShown) -> Value {
    json!({
        "file": found.file,
        "offset": found.offset,
        "kind": found.kind,
        "wrong": found.wrong,
        "crc": found.crc,
        "fields": fields_json(&found.fields),
    })
}

/// The disk at a glance.
#[must_use]
pub(super) fn overview_json(found: &Overview) -> Value {
    let ring = |ring: &RingLine| {
        json!({
            "ring": ring.ring,
            "wrong": ring.wrong,
            "out_of_use": ring.retired,
            "log_bytes": ring.log_bytes,
            "start_off": ring.start_off,
            "used": ring.used,
            "first_lsn": ring.first_lsn,
            "durable_upto": ring.durable_upto,
            "records": ring.records.as_ref().ok().map(end_json),
            "unreadable": ring.records.as_ref().err(),
        })
    };
    let slot = |slot: &SlotLine| {
        json!({
            "slot": slot.slot,
            "wrong": slot.wrong,
            "state": slot.state,
            "chunk": (slot.chunk != 0).then(|| ChunkHandle(slot.chunk).to_string()),
            "epoch": slot.epoch,
            "len": slot.len,
            "committed_len": slot.committed_len,
            "flags": slot.flags,
            "ckpt_lsn": slot.ckpt_lsn,
        })
    };
    json!({
        "disk": found.disk.iter().map(page_json).collect::<Vec<_>>(),
        "current": found.current.map(|copy| ["A", "B"][copy]),
        "journals": found.rings.iter().map(ring).collect::<Vec<_>>(),
        "slots": found.slots.iter().map(slot).collect::<Vec<_>>(),
    })
}

/// A slot in full.
#[must_use]
pub(super) fn slot_json(found: &SlotShown) -> Value {
    let children = found
        .children
        .iter()
        .map(|child| json!({ "name": child.name, "copy": child.copy, "offset": child.offset, "wrong": child.wrong }));
    let dedup = found.dedup.iter().map(|entry| {
        json!({
            "stream": entry.id.stream.to_string(),
            "op": entry.id.op,
            "chunk": entry.chunk.to_string(),
            "offset": entry.offset,
            "len": entry.len,
        })
    });
    let crcs = found.crcs.iter().map(|(page, used, crc)| json!({ "page": page, "blocks": used, "crc": crc }));
    json!({
        "slot": found.slot,
        "headers": found.headers.iter().map(page_json).collect::<Vec<_>>(),
        "current": found.current.map(|copy| ["A", "B"][copy]),
        "children": children.collect::<Vec<_>>(),
        "dedup": dedup.collect::<Vec<_>>(),
        "crcs": crcs.collect::<Vec<_>>(),
    })
}

/// A record.
#[must_use]
pub(super) fn record_json(record: &RecordLine) -> Value {
    json!({
        "lsn": record.lsn,
        "offset": record.offset,
        "type": record.kind,
        "chunk": (record.chunk != 0).then(|| ChunkHandle(record.chunk).to_string()),
        "slot": record.slot,
        "epoch": record.epoch,
        "first": record.first,
        "fill": record.fill,
        "durable_upto": record.durable_upto,
        "span": record.span,
        "says": record.says,
    })
}

/// How records end.
#[must_use]
pub(super) fn end_json(end: &RecordsEnd) -> Value {
    json!({
        "records": end.records,
        "last_lsn": end.last_lsn,
        "proven_lsn": end.proven_lsn,
        "end": journal_end(end.end).to_lowercase(),
    })
}

#[cfg(test)]
mod tests {
    use engine::store::check::JournalEnd;
    use engine::store::inspect::ChildLine;

    use super::*;

    fn shown(at: usize, name: &str, value: &str) -> Shown {
        Shown { at, len: 4, name: name.into(), value: value.into(), number: value.parse().ok() }
    }

    fn root(kind: &'static str, wrong: Option<&str>, seq: &str) -> PageShown {
        let fields = vec![shown(0, "magic", "HHDR"), shown(32, "page_seq", seq)];
        PageShown {
            file: "slots/00000003".into(),
            offset: 0x400_0000,
            kind,
            wrong: wrong.map(Into::into),
            crc: 0xab,
            fields,
            bytes: Vec::new(),
        }
    }

    #[test]
    fn a_slot_shows_both_headers_and_marks_where_they_differ() {
        let child = |name: &str, wrong: Option<&str>| ChildLine {
            name: name.into(),
            copy: 'B',
            offset: 0x401_9000,
            wrong: wrong.map(Into::into),
        };
        let found = SlotShown {
            slot: 3,
            headers: [root("HDR", None, "7"), root("HDR", Some("wrong checksum"), "6")],
            current: Some(0),
            children: vec![child("TAIL", None), child("CRC 0", Some("wrong checksum"))],
            dedup: Vec::new(),
            crcs: vec![(0, 10, 0xcd)],
        };
        let text = "slot 3

HDR A  valid, counts
HDR B  wrong checksum
AT  FIELD     A     B
 0  magic     HHDR  =
32  page_seq  7     6  *

CHILD  COPY  AT         FOUND
TAIL   B     0x4019000  as the header names it
CRC 0  B     0x4019000  wrong checksum

CRC PAGE  BLOCKS  CRC OVER THEM
       0      10  000000cd";
        assert_eq!(slot(&found), text);
        assert_eq!(slot_json(&found)["headers"][1]["fields"]["page_seq"], 6);
    }

    #[test]
    fn a_disk_at_a_glance_leaves_out_what_is_free_and_healthy() {
        let line = |slot: u32, state: &str, chunk: u64, wrong: [Option<String>; 2]| SlotLine {
            slot,
            wrong,
            state: state.into(),
            chunk,
            epoch: 1,
            len: 9000,
            committed_len: 0,
            flags: String::new(),
            ckpt_lsn: 5,
        };
        let bad = || Some("wrong checksum".to_owned());
        let end = RecordsEnd { records: 2, last_lsn: 7, proven_lsn: 6, end: JournalEnd::Torn };
        let found = Overview {
            disk: [root("DISK", None, "4"), root("DISK", None, "4")],
            current: Some(0),
            rings: vec![RingLine {
                ring: 0,
                wrong: [None, bad()],
                retired: false,
                log_bytes: 1 << 20,
                start_off: 0,
                used: 8192,
                first_lsn: 6,
                records: Ok(end),
                durable_upto: 5,
            }],
            slots: vec![
                line(0, "FREE", 0, [None, None]),
                line(1, "RWR", 0xab, [None, None]),
                line(2, "?", 0, [bad(), bad()]),
            ],
        };
        let text = "DISK A  valid, counts
DISK B  valid
AT  FIELD     A     B
 0  magic     HHDR  =
32  page_seq  4     =

JOURNAL  RECORDS  FIRST  LAST  FLUSHED     USED       OF  END
0              2      6     7        5  8.0 KiB  1.0 MiB  torn end; RING B: wrong checksum

slots: 1 ?, 1 FREE, 1 RWR

SLOT  CHUNK             STATE  EPOCH  LENGTH  COMMITTED  UP TO  FLAGS
   1  00000000000000ab  RWR        1    9000          0      5  -
   2  -                 ?          ?       ?          ?      5  -      header A: wrong checksum; header B: wrong checksum";
        assert_eq!(overview(&found), text);
        assert_eq!(overview_json(&found)["slots"][1]["chunk"], "00000000000000ab");
    }

    #[test]
    fn records_are_lines_and_say_how_they_end() {
        let record = |lsn: u64, first: bool| RecordLine {
            lsn,
            offset: 0x2000,
            kind: "APPEND".into(),
            chunk: 0xab,
            slot: Some(3),
            epoch: 1,
            first,
            fill: !first,
            durable_upto: 4,
            span: 4096,
            says: "100 bytes at 0".into(),
        };
        let end = RecordsEnd { records: 9, last_lsn: 14, proven_lsn: 12, end: JournalEnd::Clean };
        let text = "LSN  AT        TYPE         CHUNK             SLOT  EPOCH  FLUSHED  SAYS
  6  0x2000    APPEND       00000000000000ab     3      1        4  100 bytes at 0
  7  0x2000 +  APPEND FILL  00000000000000ab     3      1        4  100 bytes at 0
2 of 9 records are shown; the last is 14, flushed up to 12: clean";
        assert_eq!(journal(&[record(6, true), record(7, false)], &end), text);
    }

    #[test]
    fn a_page_shows_its_fields_and_one_without_its_first_bytes() {
        let text = "slots/00000003 at 0x4000000: HDR, wrong checksum; crc 000000ab
AT  BYTES  FIELD     VALUE
 0      4  magic     HHDR
32      4  page_seq  7";
        assert_eq!(page(&root("HDR", Some("wrong checksum"), "7")), text);
        let data = PageShown { fields: Vec::new(), bytes: b"Hello\0disk".repeat(2), ..root("data", None, "0") };
        let text = "slots/00000003 at 0x4000000: data, nothing here says what it should be; crc 000000ab
   0  48 65 6c 6c 6f 00 64 69 73 6b 48 65 6c 6c 6f 00  Hello.diskHello.
  16  64 69 73 6b  disk";
        assert_eq!(page(&data), text);
    }
}
