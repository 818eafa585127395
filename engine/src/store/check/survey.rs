//! The disk but for its slots: whose it is, its journals, and recovery, played in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wire::{ChunkHandle, ClusterId, ServerId};

use super::overlay::{Overlay, Written};
use super::report::{DiskReport, JournalEnd, JournalReport};
use crate::runtime::{FileId, Open, Runtime};
use crate::store::OpenError;
use crate::store::fold::Pending;
use crate::store::io::Io;
use crate::store::layout::{HALF_PAGES, PAGE, RING_LOG_START};
use crate::store::page::{Bad, Disk, DiskState, Page, Picked, Ring, pick};
use crate::store::record::Body;
use crate::store::recover::{Seed, Trace};
use crate::store::types::DiskConfig;
use crate::store::walk::{EndKind, Stream};
use crate::store::{open, rebuild, recover};

/// What every slot is judged with. Shared by the threads that look at slots.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) root: PathBuf,
    pub(crate) disk_uuid: [u8; 16],
    pub(crate) slots: u32,
    /// Chunks as recovery leaves them, by slot; `None`: there was no recovery.
    pub(crate) seeds: Option<BTreeMap<u32, Seed>>,
    /// Slots of each chunk that more than one slot holds.
    pub(crate) twice: BTreeMap<u32, u32>,
    pub(crate) trace: Trace,
    pub(crate) written: Arc<Written>,
}

/// Looks at DISK and the journals, and recovers in memory.
///
/// # Errors
///
/// There is no disk, or its folder does not answer.
pub(crate) async fn survey<R: Runtime>(rt: &R, root: &Path) -> Result<(DiskReport, Plan), OpenError> {
    let io = Io::new(rt.clone());
    let mut damage = Vec::new();
    let over = Overlay::new(rt.clone(), Arc::default());
    let (disk, known) = find_disk(&io, root, &mut damage).await?;
    // A retired disk is looked at like any other, and one without DISK as it would be rebuilt.
    if disk.state == DiskState::Retired || !known {
        let state = if disk.state == DiskState::Retired { DiskState::Normal } else { disk.state };
        let page = Disk { state, ..disk.clone() }.encode();
        for copy in [FileId::DiskA, FileId::DiskB] {
            over.put(copy, 0, page.as_slice()).map_err(|error| OpenError::io("cannot look at DISK", &error))?;
        }
    }
    let mut journals = Vec::new();
    for number in 0..disk.rings {
        journals.push(journal(&io, root, &disk, number, &mut damage).await);
    }
    let config = DiskConfig {
        root: root.to_owned(),
        cluster: disk.cluster,
        server: disk.server,
        shards: disk.rings.max(1),
        ring_bytes: Some(disk.ring_bytes),
        unix_seconds: disk.eio_last,
    };
    let mut seeds = BTreeMap::new();
    let mut trace = Trace::default();
    let recovery = match recover(&over, &config).await {
        Ok(recovered) => {
            trace = recovered.trace;
            let chunks = recovered.seeds.into_iter().flat_map(|shard| shard.chunks);
            // Nobody asks for the dedup tables; of all chunks together they are large.
            let lean = chunks.map(|seed| Seed { dedup: Vec::new(), ..seed });
            seeds.extend(lean.map(|seed| (seed.hdr.common.number, seed)));
            Ok(recovered.summary)
        }
        Err(error) => Err(error.what),
    };
    let trailers = u64::from(disk.slots) * 2 * (HALF_PAGES * PAGE) as u64;
    let report = DiskReport {
        owner: known.then_some((disk.cluster, disk.server)),
        slots: disk.slots,
        chunks: seeds.len() as u64,
        bytes: trailers + seeds.values().map(|seed| u64::from(seed.hdr.durable_len)).sum::<u64>(),
        journals,
        damage,
        recovery,
    };
    let plan = Plan {
        root: root.to_owned(),
        disk_uuid: disk.common.disk_uuid,
        slots: disk.slots,
        twice: twice(&seeds),
        seeds: report.recovery.is_ok().then_some(seeds),
        trace,
        written: over.written(),
    };
    Ok((report, plan))
}

/// Slots that hold what another slot holds: (this one, the other).
fn twice(seeds: &BTreeMap<u32, Seed>) -> BTreeMap<u32, u32> {
    let mut first: BTreeMap<ChunkHandle, u32> = BTreeMap::new();
    let mut twice = BTreeMap::new();
    for (slot, seed) in seeds {
        if let Some(other) = first.insert(seed.hdr.chunk(), *slot) {
            twice.insert(*slot, other);
            twice.entry(other).or_insert(*slot);
        }
    }
    twice
}

/// DISK, or what it would be rebuilt as, and which of the two.
async fn find_disk<R: Runtime>(
    io: &Io<R>,
    root: &Path,
    damage: &mut Vec<(String, String)>,
) -> Result<(Disk, bool), OpenError> {
    let mut copies = Vec::new();
    for (id, name) in [(FileId::DiskA, "DISK.A"), (FileId::DiskB, "DISK.B")] {
        let page = read_root(io, root, id, 0).await;
        let copy = page.and_then(|page| Disk::decode(&page).map_err(|bad| bad.to_string()));
        if let Err(why) = &copy {
            damage.push((name.into(), why.clone()));
        }
        copies.push(copy.map_err(|_| Bad::Checksum));
    }
    if let (Some(b), Some(a)) = (copies.pop(), copies.pop())
        && let Some(Picked { root: disk, .. }) = pick(a, b)
    {
        return Ok((disk, true));
    }
    let found = rebuild::look(io, root).await?;
    // Which cluster and server it was is in no other page; recovery only compares.
    let server = found.server.map_or(ServerId(0), |(server, _)| server);
    let disk = rebuild::plan(&found, ClusterId([0; 16]), Some(server), 0)
        .map_err(|error| OpenError::new(format!("{}: {}", open::BOTH_BAD, error.what), error.remedy))?;
    damage.push(("DISK".into(), format!("{}; `hercules disk rebuild` makes it anew", open::BOTH_BAD)));
    Ok((disk, false))
}

/// A root's page, or why there is none.
async fn read_root<R: Runtime>(io: &Io<R>, root: &Path, id: FileId, offset: u64) -> Result<Box<Page>, String> {
    let file = io.rt.open(root, id, Open::ReadOnly).await.map_err(|error| said(&error))?;
    io.read_page(&file, offset).await.map_err(|error| said(&error))
}

/// What the system says, without the number.
pub(crate) fn said(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "the file is missing".into(),
        io::ErrorKind::UnexpectedEof => "the file ends too early".into(),
        _ => error.to_string(),
    }
}

/// One journal: both roots, and record by record what is to be replayed.
async fn journal<R: Runtime>(
    io: &Io<R>,
    root: &Path,
    disk: &Disk,
    number: u32,
    damage: &mut Vec<(String, String)>,
) -> JournalReport {
    let name = format!("journal/ring-{number:04}");
    let unknown =
        JournalReport { ring: number, records: 0, bytes: 0, log_bytes: 0, last_lsn: 0, end: JournalEnd::Unknown };
    let file = match io.rt.open(root, FileId::Ring(number), Open::ReadOnly).await {
        Ok(file) => file,
        Err(error) => {
            damage.push((name, said(&error)));
            return unknown;
        }
    };
    let mut copies = Vec::new();
    for (copy, offset) in [('A', 0), ('B', PAGE as u64)] {
        let read = io.read_page(&file, offset).await.map_err(|error| said(&error));
        let ring = read.and_then(|page| Ring::decode(&page).map_err(|bad| bad.to_string())).and_then(|ring| {
            let here = ring.common.number == number && ring.common.disk_uuid == disk.common.disk_uuid;
            if here { Ok(ring) } else { Err(Bad::Misplaced.to_string()) }
        });
        if let Err(why) = &ring {
            damage.push((format!("{name} RING.{copy}"), why.clone()));
        }
        copies.push(ring.map_err(|_| Bad::Checksum));
    }
    let (Some(b), Some(a)) = (copies.pop(), copies.pop()) else { return unknown };
    let Some(Picked { root: ring, .. }) = pick(a, b) else { return unknown };
    let mut report =
        JournalReport { log_bytes: ring.log_bytes, last_lsn: ring.common.lsn, end: JournalEnd::Clean, ..unknown };
    if ring.retired {
        return report;
    }
    let len = io.rt.file_len(root, FileId::Ring(number)).await.ok().flatten().unwrap_or(0);
    if len < RING_LOG_START + ring.log_bytes {
        damage.push((name, "the file ends too early".into()));
        return JournalReport { end: JournalEnd::Unknown, ..report };
    }
    let walked = Stream::new(io, &file, &ring)
        .walk(&ring, async |record: Pending| {
            report.records += 1;
            report.bytes += u64::from(record.head.span);
            if let Err(bad) = Body::decode(record.head.kind, &record.body) {
                damage.push((name.clone(), format!("record {}: {bad}", record.head.lsn)));
            }
            Ok(())
        })
        .await;
    match walked {
        Ok(end) => {
            report.last_lsn = end.last_lsn;
            report.end = match end.kind {
                EndKind::Clean => JournalEnd::Clean,
                EndKind::Torn => JournalEnd::Torn,
                EndKind::Corrupt => JournalEnd::Corrupt,
            };
            if end.kind == EndKind::Corrupt {
                let why = format!("records after {} were flushed and are gone", end.last_lsn);
                damage.push((name, why));
            }
        }
        Err(error) => {
            damage.push((name, error.what));
            report.end = JournalEnd::Unknown;
        }
    }
    report
}
