//! Making rings, and a fresh disk.

use std::io;
use std::path::Path;

use super::OpenError;
use super::io::{COPY_MAX, Io};
use super::layout::{PAGE, RING_BYTES_FLOOR, RING_BYTES_MIN, RING_LOG_START, RINGS_BYTES};
use super::page::{Common, Disk, DiskState, Ring};
use super::types::DiskConfig;
use crate::runtime::{FileId, Folder, Open, Runtime};

/// The log area of rings made under this configuration.
pub(crate) fn ring_bytes(config: &DiskConfig) -> Result<u64, OpenError> {
    let bytes = config.ring_bytes.unwrap_or_else(|| {
        let share = RINGS_BYTES / u64::from(config.shards.max(1));
        share.max(RING_BYTES_MIN) / PAGE as u64 * PAGE as u64
    });
    if bytes < RING_BYTES_FLOOR || !bytes.is_multiple_of(PAGE as u64) {
        let what = format!("journal of {bytes} bytes per shard is not possible");
        return Err(OpenError::new(what, "use at least 256 KiB and a multiple of 4,096"));
    }
    Ok(bytes)
}

/// Makes a ring file: all zeros, and *written*, so that a flush of the device is enough from then on.
pub(crate) async fn make_ring<R: Runtime>(io: &Io<R>, root: &Path, ring: u32, log_bytes: u64) -> io::Result<R::File> {
    let file = io.rt.open(root, FileId::Ring(ring), Open::Create).await?;
    let mut zeros = io.rt.alloc(COPY_MAX).await;
    zeros.as_mut().fill(0);
    let zeros = io.rt.freeze(zeros);
    let len = RING_LOG_START + log_bytes;
    let mut at = 0;
    while at < len {
        let count = usize::try_from(len - at).unwrap_or(COPY_MAX).min(COPY_MAX);
        io.write(&file, io.rt.slice(&zeros, 0..count), at).await?;
        at += count as u64;
    }
    io.fsync(&file).await?;
    Ok(file)
}

/// Makes a fresh disk: rings first, DISK last, so that a disk with a DISK page is whole.
pub(crate) async fn format<R: Runtime>(io: &Io<R>, config: &DiskConfig) -> Result<(), OpenError> {
    let root = &config.root;
    let failed = |error: io::Error| OpenError::io("cannot format the disk", &error);
    let log_bytes = ring_bytes(config)?;
    let mut disk_uuid = [0; 16];
    io.rt
        .random(&mut disk_uuid)
        .map_err(|error| OpenError::new(format!("no random numbers: {error}"), "check the system"))?;
    let common = Common { disk_uuid, page_seq: 1, boot_gen: 1, ..Common::default() };
    for number in 0..config.shards {
        let file = make_ring(io, root, number, log_bytes).await.map_err(failed)?;
        let page = Ring {
            common: Common { number, ..common.clone() },
            retired: false,
            start_prev_crc: 0,
            start_off: 0,
            log_bytes,
            durable_upto: 0,
        }
        .encode();
        for offset in [0, PAGE as u64] {
            io.write_bytes(&file, page.as_slice(), offset).await.map_err(failed)?;
        }
        io.flush(&file).await.map_err(failed)?;
    }
    let rt = &io.rt;
    io.sync_folder(root, Folder::Journal).await.map_err(failed)?;
    io.sync_folder(root, Folder::Root).await.map_err(failed)?;
    let disk = Disk {
        common,
        cluster: config.cluster,
        server: config.server,
        state: DiskState::Normal,
        rings: config.shards,
        slots: 0,
        ring_bytes: log_bytes,
        master_term: 0,
        eio_count: 0,
        eio_last: 0,
        created: config.unix_seconds,
    };
    for copy in [FileId::DiskA, FileId::DiskB] {
        let file = rt.open(root, copy, Open::Create).await.map_err(failed)?;
        io.write_bytes(&file, disk.encode().as_slice(), 0).await.map_err(failed)?;
        io.fsync(&file).await.map_err(failed)?;
    }
    io.sync_folder(root, Folder::Root).await.map_err(failed)
}
