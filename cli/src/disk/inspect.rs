//! `hercules inspect`: what lies on a disk, for people.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use engine::store::in_use;
use engine::store::inspect::{self, What};
use wire::ChunkHandle;

use super::{inspect_layout as layout, must_exist, parse_chunk, parse_offset};
use crate::exit::{Code, Failure};
use crate::output::{Output, line};

/// Show what lies on a disk: identity, journals, slots, headers, records, pages
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("what").args(["slot", "chunk", "journal", "page"])))]
#[command(after_help = "Examples:
  hercules inspect --data-dir /data/chunks                      the disk at a glance
  hercules inspect --data-dir /data/chunks --slot 3             both headers, children, dedup table
  hercules inspect --data-dir /data/chunks --chunk 00000000000000ab
  hercules inspect --data-dir /data/chunks --journal 0 --from 1200 --limit 20
  hercules inspect --data-dir /data/chunks --page slots/00000003 0x4000000
  hercules inspect --data-dir /data/chunks --json | jq -r '.slots[] | select(.state == \"OPEN\") | .chunk'

It shows the disk as it lies, before any journal is replayed: `hercules fsck` says what a start would make of it.
Damaged pages are shown with what is wrong. Nothing is changed, and no lock is taken: the disk may be in use.")]
pub(crate) struct Inspect {
    /// Folder of the disk
    #[arg(long, env = "HERCULES_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// A slot in full
    #[arg(long, value_name = "N")]
    slot: Option<u32>,
    /// The slots whose header names this chunk
    #[arg(long, value_parser = parse_chunk, value_name = "HANDLE")]
    chunk: Option<ChunkHandle>,
    /// The records of a journal that would be replayed
    #[arg(long, value_name = "RING")]
    journal: Option<u32>,
    /// First record that is shown
    #[arg(long, default_value = "0", requires = "journal", value_name = "LSN")]
    from: u64,
    /// Most records that are shown
    #[arg(long, default_value = "1000", requires = "journal", value_name = "N")]
    limit: usize,
    /// One page of a file: DISK.A, DISK.B, journal/ring-0000 or slots/00000000, and where in it
    #[arg(long, num_args = 2, value_names = ["FILE", "OFFSET"])]
    page: Vec<String>,
    #[command(flatten)]
    output: Output,
}

impl Inspect {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// There is no disk, or not what was asked for. Damage is shown, and is no error.
    pub(crate) fn run(self) -> Result<(), Failure> {
        must_exist(&self.data_dir)?;
        if in_use(&self.data_dir)? && !self.output.json {
            line("the disk is in use: what is shown may change while it is read")?;
        }
        let root = &self.data_dir;
        if let [file, offset] = &self.page[..] {
            let offset = parse_offset(offset).map_err(|text| Failure::new(Code::Usage, text))?;
            let page = inspect::page_at(root, file, offset)?;
            return self.output.print(&layout::page_json(&page), layout::page(&page));
        }
        if let Some(ring) = self.journal {
            let (records, end) = inspect::records(root, ring, self.from, self.limit)?;
            if !self.output.json {
                return line(layout::journal(&records, &end));
            }
            records.iter().map(layout::record_json).try_for_each(line)?;
            return line(layout::end_json(&end));
        }
        let what = self.chunk.map(What::Chunk).or(self.slot.map(What::Slot));
        if let Some(what) = what {
            for slot in inspect::slots(root, what)? {
                self.output.print(&layout::slot_json(&slot), layout::slot(&slot))?;
            }
            return Ok(());
        }
        let overview = inspect::overview(root)?;
        self.output.print(&layout::overview_json(&overview), layout::overview(&overview))
    }
}
