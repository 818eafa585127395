//! The chunk store alone against the limit of the device: fio, a bare io_uring loop and the store on
//! each backend, one after the other in every round, on the same file system and as much data.
//!
//! Absolute figures move with whatever else the machine does; the ratio within one round moves much
//! less. So every round runs all contestants of a case within seconds, the order turns from round to
//! round, and what is printed is the median of the rounds' ratios with the smallest and largest.

pub mod cases;
pub mod disk;
mod extra;
pub mod plot;
pub mod rival;
pub mod subject;
pub mod table;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::runtime::Backend;
use engine::runtime::raw::RawKind;

pub use extra::{idle, memory};

use crate::limits::{mib, mib_per_s};
use cases::Case;
use rival::{Beside, FIO_REMEDY, Job};
use subject::{Sample, Subject};
use table::{Report, Row, Target};

/// Journals of the stores that are not about recovery: the smallest that a server makes.
const RING_BYTES: u64 = 64 << 20;
/// fio's queue for large blocks.
const QUEUE: usize = 8;
/// One `fdatasync` of fio, and the most appends without an answer of the store: 64 MiB of either may be
/// lost before anybody was told anything.
const UNANSWERED: usize = 64;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// A folder on the file system to measure; a scratch folder is made in it and removed.
    pub dir: PathBuf,
    /// Rounds, at least one.
    pub rounds: u32,
    /// Chunks of 64 MiB of sequential cases.
    pub chunks: u32,
    /// Of each case that is measured by time.
    pub budget: Duration,
    /// Journal whose recovery is measured, bytes.
    pub journal: u64,
    /// Backends.
    pub backends: Vec<Backend>,
    /// Only cases whose name contains this.
    pub only: Option<String>,
    /// Only the store: nothing to compare with, for profiling.
    pub lonely: bool,
    /// The bare loop submits only when it has nothing else to do, as runtimes do.
    pub batched: bool,
}

/// A folder that is gone afterwards.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A case that all contestants do.
struct Contest {
    name: &'static str,
    unit: &'static str,
    job: Job,
    case: Case,
    /// Before each, unmeasured.
    before: Option<Case>,
    value: fn(&Sample) -> f64,
    cpu: (&'static str, fn(&Sample) -> f64),
    target: Target,
    /// On a store of its own whose slots were never written.
    fresh: bool,
}

/// Measures everything; `say` is told what happens.
///
/// # Errors
///
/// The scratch folder, fio or a store failed.
pub fn run(options: &Options, say: &mut dyn FnMut(&str)) -> io::Result<Report> {
    let scratch = Scratch(options.dir.join(format!(".hercules-bench-engine-{}", std::process::id())));
    fs::create_dir_all(&scratch.0)?;
    let mut report = Report { about: about(options), ..Report::default() };
    let contests: Vec<Contest> = contests(options).into_iter().filter(|contest| options.wants(contest.name)).collect();
    if !contests.is_empty() {
        contest_all(options, &scratch.0, contests, &mut report, say)?;
    }
    extra::measure(options, &scratch.0, &mut report, say)?;
    Ok(report)
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    fn file_len(&self) -> u64 {
        u64::from(self.chunks) << 26
    }
}

fn contest_all(
    options: &Options,
    scratch: &Path,
    contests: Vec<Contest>,
    report: &mut Report,
    say: &mut dyn FnMut(&str),
) -> io::Result<()> {
    say("writing the files that are measured");
    let beside = Beside::new(scratch, options.file_len(), options.batched)?;
    if !beside.has_fio() {
        report.about.push(FIO_REMEDY.into());
    }
    let mut subjects = Vec::new();
    for backend in &options.backends {
        subjects.push(prepared(options, scratch, *backend)?);
    }
    let mut rows: Vec<Row> = contests
        .iter()
        .map(|contest| Row::new(contest.name, contest.unit, contest.cpu.0, Some(contest.target)))
        .collect();
    let turns = subjects.len() + 2;
    for round in 0..options.rounds {
        say(&format!("round {} of {}", round + 1, options.rounds));
        for (contest, row) in contests.iter().zip(&mut rows) {
            for turn in 0..turns {
                let who = (turn + round as usize) % turns;
                let (name, sample) = match who {
                    0 if beside.has_fio() && !options.lonely => ("fio".to_owned(), beside.fio(&contest.job)?),
                    0 => continue,
                    1 if options.lonely => continue,
                    1 => ("raw".to_owned(), beside.raw(&contest.job)?),
                    _ => {
                        let subject = &subjects[who - 2];
                        (subject.backend.to_string(), contest.run(options, scratch, subject)?)
                    }
                };
                row.add(&name, (contest.value)(&sample), Some((contest.cpu.1)(&sample)));
            }
        }
    }
    // Whoever went first in a round, the table has one order.
    let order = |who: &str| match who {
        "fio" => 0,
        "raw" => 1,
        who => 2 + options.backends.iter().position(|backend| backend.to_string() == who).unwrap_or(0),
    };
    rows.iter_mut().for_each(|row| row.columns.sort_by_key(|column| order(&column.who)));
    report.rows.extend(rows);
    Ok(())
}

impl Contest {
    fn run(&self, options: &Options, scratch: &Path, subject: &Subject) -> io::Result<Sample> {
        if !self.fresh {
            if let Some(before) = self.before {
                subject.run(before)?;
            }
            return subject.run(self.case);
        }
        let folder = Scratch(scratch.join("fresh"));
        let fresh = Subject::start(subject.backend, &folder.0, Some(RING_BYTES))?;
        fresh.run(Case::Prepare { chunks: options.chunks })?;
        let sample = fresh.run(self.case);
        drop(fresh);
        sample
    }
}

/// A store all of whose slots have been written.
fn prepared(options: &Options, scratch: &Path, backend: Backend) -> io::Result<Subject> {
    let subject = Subject::start(backend, &scratch.join(backend.to_string()), Some(RING_BYTES))?;
    // The slots at hand that were never written come first: until none is left.
    for _ in 0..4 {
        subject.run(Case::Prepare { chunks: options.chunks })?;
        if subject.run(Case::Append { window: UNANSWERED })?.counters.slot_syncs == 0 {
            break;
        }
    }
    Ok(subject)
}

fn contests(options: &Options) -> Vec<Contest> {
    let job = Job {
        kind: RawKind::Write,
        block_len: 1 << 20,
        depth: QUEUE,
        file_len: options.file_len(),
        random: false,
        sync_every: Some(UNANSWERED),
        budget: None,
        fresh: false,
    };
    let budget = options.budget;
    let prepare = Case::Prepare { chunks: options.chunks };
    let small = Job { block_len: 4096, depth: 1, sync_every: Some(1), budget: Some(budget), ..job };
    let random = Job {
        kind: RawKind::Read,
        block_len: 4096,
        depth: 32,
        random: true,
        sync_every: None,
        budget: Some(budget),
        ..job
    };
    let appends = Contest {
        name: "appends of 1 MiB, written extents",
        unit: "MiB/s",
        job,
        case: Case::Append { window: UNANSWERED },
        before: Some(prepare),
        value: throughput,
        cpu: ("CPU s/GiB", cpu_per_gib),
        target: Target::OfFioAtLeast(0.85),
        fresh: false,
    };
    let reads = Contest {
        name: "sequential reads of 1 MiB",
        job: Job { kind: RawKind::Read, sync_every: None, ..job },
        case: Case::Read { window: QUEUE },
        before: None,
        target: Target::OfFioAtLeast(0.90),
        ..appends
    };
    let random_reads = Contest {
        name: "cold random reads of 4 KiB, 32 in flight",
        unit: "1/s",
        job: random,
        case: Case::ReadRandom { window: 32, span: u64::MAX, budget },
        before: None,
        value: rate,
        cpu: ("CPU us/op", cpu_per_op),
        ..appends
    };
    let cached = Contest {
        name: "cached reads of 4 KiB, 32 in flight",
        // The same megabytes again and again: the store's memory has them; for the others, the host's may.
        job: Job { file_len: 16 << 20, ..random },
        case: Case::ReadRandom { window: 32, span: 16 << 20, budget },
        target: Target::AtLeast(300_000.0),
        ..random_reads
    };
    let writers = |writers, chunks| Case::AppendSmall { writers, chunks, budget };
    let many = Contest {
        name: "appends of 100 B, 64 writers, one chunk",
        job: small,
        case: writers(64, 1),
        before: None,
        target: Target::OfFioAtLeast(10.0),
        ..random_reads
    };
    let apart = Contest { name: "appends of 100 B, 64 writers, 64 chunks", case: writers(64, 64), ..many };
    let lone = Contest {
        name: "one append of 100 B, latency",
        unit: "us, median",
        case: writers(1, 1),
        value: |sample| sample.latency.map_or(0.0, |latency| latency.p50),
        target: Target::OfFioAtMost(1.3),
        ..many
    };
    let fresh = Contest {
        name: "appends of 1 MiB, fresh extents",
        job: Job { fresh: true, ..job },
        before: None,
        fresh: true,
        ..appends
    };
    vec![appends, reads, random_reads, cached, many, apart, lone, fresh]
}

fn throughput(sample: &Sample) -> f64 {
    mib_per_s(sample.bytes, sample.elapsed)
}

#[allow(clippy::cast_precision_loss, reason = "rates for people")]
fn rate(sample: &Sample) -> f64 {
    sample.ops as f64 / sample.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn cpu_per_gib(sample: &Sample) -> f64 {
    sample.cpu_s / (mib(sample.bytes) / 1024.0).max(f64::MIN_POSITIVE)
}

#[allow(clippy::cast_precision_loss, reason = "rates for people")]
fn cpu_per_op(sample: &Sample) -> f64 {
    sample.cpu_s * 1e6 / (sample.ops as f64).max(1.0)
}

fn about(options: &Options) -> Vec<String> {
    let uname = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    vec![
        format!("Linux {}, {cores} cores, load before {}", uname.release().to_string_lossy(), load.split(' ').next().unwrap_or("?")),
        format!(
            "{} rounds; {} MiB a contestant; files of the contest lie beside each other, read and written with O_DIRECT",
            options.rounds,
            u64::from(options.chunks) << 6
        ),
        "fio and raw: queue 8 and fdatasync every 64 MiB for 1 MiB blocks; 4 KiB write + fdatasync for small appends".into(),
        "store: at most 64 appends of 1 MiB without an answer; every answer means flushed; every read passed its checksums".into(),
    ]
}
