//! What has no rival: recovery, an idle shard, memory, and the engine's counts beside the kernel's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use engine::runtime::Backend;

use super::cases::Case;
use super::disk::{self, OwnDevice};
use super::subject::{MEMORY, Sample, Subject};
use super::table::{Report, Row, Target};
use super::{Options, RING_BYTES, Scratch, UNANSWERED, cpu_per_gib};
use crate::limits::mib;
use crate::meter::own_cpu_s;

/// A store settles for so long before it counts as idle: its MARK is written, its slots are ready.
const SETTLE: Duration = Duration::from_secs(2);
/// Device of our own for exact counts.
const OWN_DEVICE: u64 = 1 << 30;

/// All of it.
pub(super) fn measure(
    options: &Options,
    scratch: &Path,
    report: &mut Report,
    say: &mut dyn FnMut(&str),
) -> io::Result<()> {
    if options.wants("recovery") {
        recovery(options, scratch, report, say)?;
    }
    if options.wants("idle") {
        say("idle shards");
        report.rows.push(alone(options, scratch, "idle", "% of a core", Target::AtMost(0.1))?);
    }
    if options.wants("memory") {
        say("memory under load");
        report.rows.push(alone(options, scratch, "memory", "of the pools", Target::AtMost(1.0))?);
    }
    if options.wants("counts") {
        say("counts of the engine and of the kernel");
        counts(options, scratch, report)?;
    }
    Ok(())
}

/// Time from a killed store with a full journal to one that serves.
fn recovery(options: &Options, scratch: &Path, report: &mut Report, say: &mut dyn FnMut(&str)) -> io::Result<()> {
    let folder = Scratch(scratch.join("recovery"));
    let Some(first) = options.backends.first() else { return Ok(()) };
    say("filling a journal");
    let name = format!("recovery of a full journal of {} MiB", options.journal >> 20);
    let mut row = Row::new(&name, "s", "CPU s", Some(Target::AtMost(2.0)));
    let made = Subject::start(*first, &folder.0, Some(options.journal))?;
    report.counts.push(format!(
        "a fresh disk with a journal of {} MiB: {:.2} s",
        options.journal >> 20,
        made.found.took.as_secs_f64()
    ));
    made.run(Case::FillJournal { writers: 1000, chunks: 16 })?;
    made.abandon();
    let kept = Kept::take(&folder.0)?;
    let mut records = 0;
    for round in 0..options.rounds {
        say(&format!("recovery, round {} of {}", round + 1, options.rounds));
        for backend in &options.backends {
            kept.put_back()?;
            let before = own_cpu_s();
            let recovered = Subject::start(*backend, &folder.0, Some(options.journal))?;
            row.add(&backend.to_string(), recovered.found.took.as_secs_f64(), Some(own_cpu_s() - before));
            records = recovered.found.records_replayed;
            recovered.abandon();
        }
    }
    if records == 0 {
        return Err(io::Error::other("recovery replayed nothing: the journal was not full"));
    }
    report.counts.push(format!("recovery replayed {records} records of appends of 100 B to 16 chunks"));
    report.rows.push(row);
    Ok(())
}

/// What recovery changes on a disk, to be put back: DISK, the pages of the ring, the trailers of slots.
struct Kept(Vec<(PathBuf, u64, Vec<u8>)>);

impl Kept {
    fn take(root: &Path) -> io::Result<Self> {
        let mut kept = Vec::new();
        for name in ["DISK.A", "DISK.B"] {
            kept.push((root.join(name), 0, fs::read(root.join(name))?));
        }
        let ring = root.join("journal/ring-0000");
        let mut pages = vec![0; 8192];
        File::open(&ring)?.read_exact_at(&mut pages, 0)?;
        kept.push((ring, 0, pages));
        for slot in fs::read_dir(root.join("slots"))? {
            let path = slot?.path();
            let file = File::open(&path)?;
            let data = u64::from(wire::limits::CHUNK_SIZE);
            let mut trailer = vec![0; usize::try_from(file.metadata()?.len().saturating_sub(data)).unwrap_or(0)];
            file.read_exact_at(&mut trailer, data)?;
            kept.push((path, data, trailer));
        }
        Ok(Self(kept))
    }

    fn put_back(&self) -> io::Result<()> {
        for (path, offset, bytes) in &self.0 {
            let file = OpenOptions::new().write(true).open(path)?;
            file.write_all_at(bytes, *offset)?;
            file.sync_all()?;
        }
        Ok(())
    }
}

/// A case in a process of its own, so that its CPU time and memory are one store's.
fn alone(options: &Options, scratch: &Path, what: &str, unit: &'static str, target: Target) -> io::Result<Row> {
    let name = match what {
        "idle" => "idle CPU of a shard with its store".to_owned(),
        _ => format!("peak memory beyond an empty shard, of pools of {} MiB", POOLS >> 20),
    };
    let mut row = Row::new(&name, unit, "", Some(target));
    let program = std::env::current_exe()?;
    for _ in 0..options.rounds {
        for backend in &options.backends {
            let folder = Scratch(scratch.join(what));
            fs::create_dir_all(&folder.0)?;
            let out = Command::new(&program)
                .args(["--alone", what, "--runtimes", &backend.to_string(), "--dir"])
                .arg(&folder.0)
                .args(["--seconds", &options.budget.as_secs_f64().to_string()])
                .output()?;
            let text = String::from_utf8_lossy(&out.stdout);
            let value: f64 = text.trim().parse().map_err(|_| {
                io::Error::other(format!("{what} on {backend}: {text}{}", String::from_utf8_lossy(&out.stderr)))
            })?;
            row.add(&backend.to_string(), value, None);
        }
    }
    Ok(row)
}

/// Percent of a core that this process takes while its only store has nothing to do.
///
/// # Errors
///
/// What the engine says.
pub fn idle(backend: Backend, folder: &Path, budget: Duration) -> io::Result<f64> {
    let subject = Subject::start(backend, folder, Some(RING_BYTES))?;
    subject.run(Case::AppendSmall { writers: 1, chunks: 1, budget: Duration::from_millis(100) })?;
    thread::sleep(SETTLE);
    let window = budget * 4;
    let before = own_cpu_s();
    thread::sleep(window);
    let percent = (own_cpu_s() - before) / window.as_secs_f64() * 100.0;
    drop(subject);
    Ok(percent)
}

/// What the pools of a shard may hold: twice the buffers (reads, and glommio's rounding), the journal's
/// open batch and the one on its way.
const POOLS: u64 = 2 * MEMORY as u64 + (16 << 20);

/// Largest memory of this process under load, less what it had before, as a part of [`POOLS`].
///
/// # Errors
///
/// What the engine says.
pub fn memory(backend: Backend, folder: &Path, budget: Duration) -> io::Result<f64> {
    let before = status("VmRSS")?;
    let subject = Subject::start(backend, folder, Some(RING_BYTES))?;
    for _ in 0..2 {
        subject.run(Case::Prepare { chunks: 4 })?;
        subject.run(Case::Append { window: UNANSWERED })?;
        subject.run(Case::ReadRandom { window: 256, span: u64::MAX, budget })?;
        subject.run(Case::Read { window: 16 })?;
        subject.run(Case::AppendSmall { writers: 64, chunks: 8, budget })?;
    }
    let peak = status("VmHWM")?;
    drop(subject);
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    Ok(peak.saturating_sub(before) as f64 / POOLS as f64)
}

/// A size of this process in bytes, by its name in `/proc/self/status`.
fn status(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other(format!("/proc/self/status has no {name}")))
}

/// Requests and bytes of operations as the engine counts them, beside what the kernel saw.
fn counts(options: &Options, scratch: &Path, report: &mut Report) -> io::Result<()> {
    let own = OwnDevice::make(scratch, OWN_DEVICE);
    let folder = match &own {
        Ok(device) => device.folder().to_owned(),
        Err(_) => scratch.join("counts"),
    };
    report.counts.push(match &own {
        Ok(_) => {
            "counts on a device of our own (ext4 on a loop device); the kernel's include ext4's own journal:".into()
        }
        Err(error) => format!("counts on a device that others write to, so the kernel's are upper bounds ({error}):"),
    });
    let Some(backend) = options.backends.first() else { return Ok(()) };
    let subject = Subject::start(*backend, &folder.join("store"), Some(RING_BYTES))?;
    for _ in 0..4 {
        subject.run(Case::Prepare { chunks: 2 })?;
        subject.run(Case::Append { window: UNANSWERED })?;
    }
    let budget = options.budget.min(Duration::from_millis(500));
    let cases = [
        ("1 MiB, one at a time", Case::Append { window: 1 }),
        ("1 MiB, 64 at a time", Case::Append { window: UNANSWERED }),
        ("100 B, one writer", Case::AppendSmall { writers: 1, chunks: 1, budget }),
        ("100 B, 64 writers", Case::AppendSmall { writers: 64, chunks: 1, budget }),
    ];
    for (name, case) in cases {
        subject.run(Case::Prepare { chunks: 2 })?;
        thread::sleep(Duration::from_millis(500));
        let before = disk::requests(&folder);
        let sample = subject.run(case)?;
        let kernel = disk::requests(&folder).zip(before).map(|(after, before)| after.since(before));
        report.counts.push(count_line(name, &sample, kernel));
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "ratios for people")]
fn count_line(name: &str, sample: &Sample, kernel: Option<disk::Requests>) -> String {
    let counters = &sample.counters;
    let per_group = counters.flushes as f64 / counters.groups.max(1) as f64;
    let amplification = counters.device_write_bytes as f64 / sample.bytes.max(1) as f64;
    let mut line = format!(
        "  {name}: {} operations in {} groups; {per_group:.3} flushes a group; engine {} writes, {:.1} MiB ({amplification:.4} of the payload), {} flushes",
        sample.ops,
        counters.groups,
        counters.device_writes,
        mib(counters.device_write_bytes),
        counters.flushes,
    );
    if let Some(kernel) = kernel {
        line += &format!(
            "; kernel {} writes, {:.1} MiB, {} flushes",
            kernel.writes,
            mib(kernel.write_bytes),
            kernel.flushes
        );
    }
    if counters.checkpoints > 0 {
        line += &format!("; {} checkpoints", counters.checkpoints);
    }
    line + &format!("; CPU {:.2} s/GiB", cpu_per_gib(sample))
}
