//! How `fsck` reads: lines for people, objects for programs.

use std::path::Path;

use benches::report::size;
use engine::store::RecoverySummary;
use engine::store::check::{DiskReport, JournalEnd, JournalReport, Problem, SlotReport, Verdict};
use serde_json::{Value, json};
use wire::member::ReplicaState;

use super::fsck::Tally;

/// What to do about damage.
const REMEDY: &str = "  remedy: start the server and run `hercules scrub`: it heals bad copies of roots and fetches bad
          blocks from other replicas; `hercules stat --chunks FILE` compares the replicas of a file";

/// The disk but for its slots.
#[must_use]
pub(super) fn disk(root: &Path, report: &DiskReport) -> String {
    let owner = match report.owner {
        Some((cluster, server)) => format!("server {server} of cluster {cluster}"),
        None => "nobody knows whose".into(),
    };
    let mut lines = vec![format!("{}: {owner}, {} slots, {} chunks", root.display(), report.slots, report.chunks)];
    lines.extend(report.journals.iter().map(journal));
    match &report.recovery {
        Ok(summary) => lines.push(recovery(summary)),
        Err(why) => {
            lines.push(format!("  a server would not start here: {why}"));
            lines.push("  chunks are judged by their headers alone, without what the journals hold".into());
        }
    }
    lines.extend(report.damage.iter().map(|(file, why)| format!("  DAMAGE {file}: {why}")));
    lines.join("\n")
}

fn journal(journal: &JournalReport) -> String {
    let (bytes, of) = (size(journal.bytes), size(journal.log_bytes));
    let end = journal_end(journal.end);
    format!("  journal {}: {} records, {bytes} of {of}, {end}", journal.ring, journal.records)
}

/// How a journal ends, in words.
#[must_use]
pub(super) fn journal_end(end: JournalEnd) -> &'static str {
    match end {
        JournalEnd::Clean => "clean",
        JournalEnd::Torn => "torn end",
        JournalEnd::Corrupt => "CORRUPT",
        JournalEnd::Unknown => "UNKNOWN",
    }
}

fn recovery(summary: &RecoverySummary) -> String {
    format!(
        "  a start would replay {} records, heal {} root pages, mark {} chunks damaged",
        summary.records_replayed, summary.healed, summary.damaged
    )
}

/// One slot, and below it what is wrong.
#[must_use]
pub(super) fn slot(report: &SlotReport) -> String {
    let verdict = report.verdict();
    let mut text = match &report.chunk {
        Some(chunk) => format!(
            "slot {:<6}  chunk {}  {verdict:<16}  {}, epoch {}, {} bytes, {} blocks",
            report.slot,
            chunk.chunk,
            state(chunk.state),
            chunk.epoch,
            chunk.len,
            chunk.blocks
        ),
        None => format!("slot {:<6}  {:<22}  {verdict}", report.slot, if report.lost { "" } else { "free" }),
    };
    for problem in &report.problems {
        text.push_str(&format!("\n             {problem}"));
    }
    text
}

fn state(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Open => "open",
        ReplicaState::Rwr => "unsealed",
        ReplicaState::Sealed => "sealed",
        ReplicaState::Condemned => "condemned",
    }
}

/// What it all comes to.
#[must_use]
pub(super) fn summary(tally: &Tally) -> String {
    let counts: Vec<String> = Verdict::ALL
        .iter()
        .zip(tally.verdicts)
        .filter(|(_, count)| *count > 0)
        .map(|(verdict, count)| format!("{count} {verdict}"))
        .collect();
    let slots = format!("slots: {}; {} hold chunks, {} are free", counts.join(", "), tally.chunks, tally.free);
    if !tally.is_damaged() {
        return format!("{slots}\nno damage");
    }
    let found = format!("{} blocks do not verify, {} problems outside of slots", tally.bad_blocks, tally.elsewhere);
    format!("{slots}\nDAMAGED: {found}\n{REMEDY}")
}

/// Blocks that do not verify.
#[must_use]
pub(super) fn bad_blocks(report: &SlotReport) -> u64 {
    let count = |problem: &Problem| match problem {
        Problem::Blocks { first, last, .. } => u64::from(last - first + 1),
        _ => 0,
    };
    report.problems.iter().map(count).sum()
}

/// The disk, each journal, and each damage outside of slots.
#[must_use]
pub(super) fn disk_json(root: &Path, report: &DiskReport) -> Vec<Value> {
    let disk = root.display().to_string();
    let mut objects = vec![json!({
        "type": "disk",
        "disk": disk,
        "cluster": report.owner.map(|(cluster, _)| cluster.to_string()),
        "server": report.owner.map(|(_, server)| server.0),
        "slots": report.slots,
        "chunks": report.chunks,
        "recovery": report.recovery.as_ref().ok().map(|summary| json!({
            "records": summary.records_replayed,
            "torn_ends": summary.torn_ends,
            "suspects": summary.suspects,
            "damaged": summary.damaged,
            "lost_slots": summary.lost_slots,
            "healed": summary.healed,
        })),
        "refused": report.recovery.as_ref().err(),
    })];
    objects.extend(report.journals.iter().map(|journal| {
        json!({
            "type": "journal",
            "disk": disk,
            "ring": journal.ring,
            "records": journal.records,
            "bytes": journal.bytes,
            "log_bytes": journal.log_bytes,
            "last_lsn": journal.last_lsn,
            "end": journal_end(journal.end).to_lowercase(),
        })
    }));
    let damage = report.damage.iter();
    objects.extend(damage.map(|(file, why)| json!({ "type": "damage", "disk": disk, "file": file, "why": why })));
    objects
}

/// One slot.
#[must_use]
pub(super) fn slot_json(root: &Path, report: &SlotReport) -> Value {
    let verdict = report.verdict();
    let chunk = report.chunk.as_ref();
    json!({
        "type": "slot",
        "disk": root.display().to_string(),
        "slot": report.slot,
        "verdict": verdict.to_string(),
        "damage": verdict.is_damage(),
        "chunk": chunk.map(|chunk| chunk.chunk.to_string()),
        "state": chunk.map(|chunk| state(chunk.state)),
        "epoch": chunk.map(|chunk| chunk.epoch.0),
        "promised": chunk.map(|chunk| chunk.promised.0),
        "len": chunk.map(|chunk| chunk.len),
        "committed_len": chunk.map(|chunk| chunk.committed_len),
        "last_seq": chunk.map(|chunk| chunk.last_seq.0),
        "digest": chunk.and_then(|chunk| chunk.digest).map(hex),
        "blocks": chunk.map(|chunk| chunk.blocks),
        "problems": report.problems.iter().map(problem_json).collect::<Vec<_>>(),
    })
}

fn problem_json(problem: &Problem) -> Value {
    let text = problem.to_string();
    match problem {
        Problem::TornEnd => json!({ "kind": "torn end", "text": text }),
        Problem::Suspect { upto } => json!({ "kind": "suspect", "upto": upto.0, "text": text }),
        Problem::MarkedDamaged => json!({ "kind": "marked", "text": text }),
        Problem::Blocks { first, last, .. } => json!({ "kind": "blocks", "first": first, "last": last, "text": text }),
        Problem::HeaderCopy { copy, .. } => json!({ "kind": "header", "copy": copy, "text": text }),
        Problem::Child { page, copy, .. } => json!({ "kind": "child", "page": page, "copy": copy, "text": text }),
        Problem::Digest => json!({ "kind": "digest", "text": text }),
        Problem::Twice { slot } => json!({ "kind": "twice", "slot": slot, "text": text }),
        Problem::File { .. } => json!({ "kind": "file", "text": text }),
    }
}

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last object of a disk.
#[must_use]
pub(super) fn summary_json(root: &Path, tally: &Tally) -> Value {
    let verdicts: serde_json::Map<String, Value> =
        Verdict::ALL.iter().zip(tally.verdicts).map(|(verdict, count)| (verdict.to_string(), count.into())).collect();
    json!({
        "type": "summary",
        "disk": root.display().to_string(),
        "damage": tally.is_damaged(),
        "verdicts": verdicts,
        "chunks": tally.chunks,
        "free": tally.free,
        "bad_blocks": tally.bad_blocks,
        "damage_elsewhere": tally.elsewhere,
    })
}

#[cfg(test)]
mod tests {
    use engine::store::check::{ChunkFacts, Why};
    use wire::{ChunkHandle, ClusterId, Epoch, Seq, ServerId};

    use super::*;

    fn report() -> SlotReport {
        let chunk = ChunkFacts {
            chunk: ChunkHandle(0xab),
            state: ReplicaState::Sealed,
            epoch: Epoch(2),
            promised: Epoch(2),
            len: 40_000,
            committed_len: 40_000,
            last_seq: Seq(9),
            digest: Some([7; 16]),
            blocks: 10,
        };
        let problems = vec![
            Problem::HeaderCopy { copy: 'B', why: "wrong checksum".into() },
            Problem::Blocks { first: 2, last: 2, why: Why::Checksum },
            Problem::Blocks { first: 5, last: 6, why: Why::Unreadable },
        ];
        SlotReport { slot: 3, lost: false, chunk: Some(chunk), problems }
    }

    #[test]
    fn a_slot_is_a_line_and_a_line_for_each_problem() {
        let text = "slot 3       chunk 00000000000000ab  damaged blocks    sealed, epoch 2, 40000 bytes, 10 blocks
             header B: wrong checksum
             block 2: wrong checksum
             blocks 5 to 6: cannot be read";
        assert_eq!(slot(&report()), text);
        let lost = SlotReport { slot: 12, lost: true, chunk: None, problems: Vec::new() };
        assert_eq!(slot(&lost), "slot 12                              lost slot");
    }

    #[test]
    fn a_summary_counts_every_slot_once_and_says_what_to_do() {
        let mut tally = Tally::default();
        tally.add(&report());
        tally.add(&SlotReport { problems: Vec::new(), ..report() });
        tally.add(&SlotReport { slot: 4, lost: false, chunk: None, problems: Vec::new() });
        tally.add(&SlotReport { slot: 5, lost: true, chunk: None, problems: Vec::new() });
        let text = "slots: 2 ok, 1 damaged blocks, 1 lost slot; 2 hold chunks, 1 are free
DAMAGED: 3 blocks do not verify, 0 problems outside of slots
  remedy: start the server and run `hercules scrub`: it heals bad copies of roots and fetches bad
          blocks from other replicas; `hercules stat --chunks FILE` compares the replicas of a file";
        assert_eq!(summary(&tally), text);
        let mut clean = Tally::default();
        clean.add(&SlotReport { problems: vec![Problem::TornEnd], ..report() });
        assert_eq!(summary(&clean), "slots: 1 torn end; 1 hold chunks, 0 are free\nno damage");
        clean.elsewhere = 1;
        assert!(clean.is_damaged());
    }

    #[test]
    fn a_disk_names_its_owner_its_journals_and_its_damage() {
        let report = DiskReport {
            owner: Some((ClusterId([0xab; 16]), ServerId(4))),
            slots: 8,
            chunks: 2,
            bytes: 0,
            journals: vec![JournalReport {
                ring: 0,
                records: 6,
                bytes: 24_576,
                log_bytes: 64 << 20,
                last_lsn: 9,
                end: JournalEnd::Torn,
            }],
            damage: vec![("DISK.B".into(), "wrong checksum".into())],
            recovery: Ok(RecoverySummary { records_replayed: 6, healed: 1, ..RecoverySummary::default() }),
        };
        let text = "/data: server 4 of cluster abababababababababababababababab, 8 slots, 2 chunks
  journal 0: 6 records, 24.0 KiB of 64.0 MiB, torn end
  a start would replay 6 records, heal 1 root pages, mark 0 chunks damaged
  DAMAGE DISK.B: wrong checksum";
        assert_eq!(disk(Path::new("/data"), &report), text);
        let refused = DiskReport { recovery: Err("record of type 99".into()), owner: None, ..report };
        let text = disk(Path::new("/data"), &refused);
        assert!(text.starts_with("/data: nobody knows whose"), "{text}");
        assert!(text.contains("a server would not start here: record of type 99"), "{text}");
    }

    #[test]
    fn programs_get_numbers() {
        let value = slot_json(Path::new("/data"), &report());
        assert_eq!((&value["slot"], &value["damage"], &value["len"]), (&json!(3), &json!(true), &json!(40_000)));
        let blocks = json!({ "kind": "blocks", "first": 5, "last": 6, "text": "blocks 5 to 6: cannot be read" });
        assert_eq!(value["problems"][2], blocks);
        assert_eq!(value["digest"], "07".repeat(16));
    }
}
