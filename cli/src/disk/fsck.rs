//! `hercules fsck`: everything on a disk is read and judged, and nothing is changed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use engine::store::check::{CheckEvent, CheckOptions, SlotReport, Verdict, check};
use indicatif::ProgressBar;
use wire::ChunkHandle;

use super::{fsck_layout as layout, must_exist, parse_chunk};
use crate::exit::{Code, Failure};
use crate::output::{self, Output};
use crate::progress;

/// Read everything on the disk of a stopped chunkserver and say what is damaged; changes nothing
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules fsck --data-dir /data/chunks
  hercules fsck --data-dir /disk1 --data-dir /disk2 --problems
  hercules fsck --data-dir /data/chunks --chunk 00000000000000ab
  hercules fsck --data-dir /data/chunks --json | jq 'select(.type == \"slot\" and .damage)'

Chunks are judged as the next start of the server would find them: what the journal holds is replayed in memory.
Verdicts: ok; torn end and suspect, which a crash makes and a start deals with; damaged metadata, damaged blocks,
unreadable and lost slot, which are damage.

Exit code 0 when no damage was found, 1 when some was, 66 for no such folder, 78 when the disk is in use or is no disk.")]
pub(crate) struct Fsck {
    /// Folder of a chunkserver's disk; may be given several times
    #[arg(long, env = "HERCULES_DATA_DIR", required = true, value_delimiter = ',', value_name = "DIR")]
    data_dir: Vec<PathBuf>,
    /// Only this chunk: reads the journals, and its slot
    #[arg(long, value_parser = parse_chunk, value_name = "HANDLE")]
    chunk: Option<ChunkHandle>,
    /// Do not show chunks that are ok
    #[arg(long)]
    problems: bool,
    /// Slots that are read at the same time
    #[arg(long, default_value = "8", value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    jobs: u32,
    #[command(flatten)]
    output: Output,
}

/// What was counted on one disk.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Slots by verdict, in the order of [`Verdict::ALL`]; free ones count by theirs.
    pub(super) verdicts: [u64; Verdict::ALL.len()],
    /// Chunks looked at.
    pub(super) chunks: u64,
    /// Slots that hold nothing.
    pub(super) free: u64,
    /// Blocks that do not verify.
    pub(super) bad_blocks: u64,
    /// Damage outside of slots.
    pub(super) elsewhere: u64,
}

impl Tally {
    pub(super) fn add(&mut self, report: &SlotReport) {
        let verdict = report.verdict();
        if let Some(index) = Verdict::ALL.iter().position(|one| *one == verdict) {
            self.verdicts[index] += 1;
        }
        self.chunks += u64::from(report.chunk.is_some());
        self.free += u64::from(report.chunk.is_none() && !report.lost);
        self.bad_blocks += layout::bad_blocks(report);
    }

    /// Whether the disk did not keep what it was given.
    pub(super) fn is_damaged(&self) -> bool {
        let slots = Verdict::ALL.iter().zip(self.verdicts).any(|(verdict, count)| verdict.is_damage() && count > 0);
        slots || self.elsewhere > 0
    }
}

impl Fsck {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// [`Code::Failed`] when damage was found; why a disk could not be looked at.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut damaged = false;
        let mut failed = None;
        for root in &self.data_dir {
            match self.one(root) {
                Ok(found) => damaged |= found,
                // The other disks are looked at all the same.
                Err(failure) if self.data_dir.len() > 1 => {
                    eprintln!("hercules: {failure}");
                    failed = failed.or(Some(failure.code));
                }
                Err(failure) => return Err(failure),
            }
        }
        match failed {
            Some(code) => Err(Failure { code, ..Failure::silent(Code::Failed) }),
            None if damaged => Err(Failure::silent(Code::Failed)),
            None => Ok(()),
        }
    }

    /// Looks at one disk; whether it is damaged.
    fn one(&self, root: &Path) -> Result<bool, Failure> {
        must_exist(root)?;
        let mut tally = Tally::default();
        let mut bar = ProgressBar::hidden();
        let mut printed = Ok(());
        let options = CheckOptions { jobs: self.jobs, chunk: self.chunk };
        let tell = |event| {
            printed = self.tell(root, event, &mut tally, &mut bar);
            if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        check(root, options, tell)?;
        bar.finish_and_clear();
        printed?;
        if let (Some(chunk), 0) = (self.chunk, tally.chunks + tally.verdicts.iter().sum::<u64>()) {
            let failure = Failure::new(Code::NotFound, format!("{}: no chunk {chunk} on this disk", root.display()));
            return Err(failure.remedy("`hercules stat --chunks` says which servers hold a file's chunks"));
        }
        let value = layout::summary_json(root, &tally);
        self.output.print(&value, layout::summary(&tally))?;
        Ok(tally.is_damaged())
    }

    fn tell(&self, root: &Path, event: CheckEvent, tally: &mut Tally, bar: &mut ProgressBar) -> Result<(), Failure> {
        match event {
            CheckEvent::Disk(report) => {
                tally.elsewhere = report.damage.len() as u64 + u64::from(report.recovery.is_err());
                if self.output.json {
                    layout::disk_json(root, &report).iter().try_for_each(output::line)?;
                } else {
                    output::line(layout::disk(root, &report))?;
                }
                if self.chunk.is_none() {
                    *bar = progress::bytes(Some(report.bytes), "fsck");
                }
                Ok(())
            }
            CheckEvent::Read(bytes) => {
                bar.inc(bytes);
                Ok(())
            }
            CheckEvent::Slot(report) => {
                tally.add(&report);
                let empty = report.chunk.is_none() && report.verdict() == Verdict::Ok;
                if empty || (self.problems && report.verdict() == Verdict::Ok) {
                    return Ok(());
                }
                bar.suspend(|| self.output.print(&layout::slot_json(root, &report), layout::slot(&report)))
            }
        }
    }
}
