//! `hercules write`: bytes at an offset of a file that is there.

use std::path::PathBuf;

use bytes::BytesMut;
use clap::Args;
use serde::Serialize;
use wire::NamePath;

use super::pieces::Pieces;
use crate::cluster::{Cluster, parse_path};
use crate::exit::Failure;
use crate::output::Output;

/// What reaches past the end becomes chunks of this size: full ones.
const AT_ONCE: usize = wire::limits::CHUNK_SIZE as usize;

/// Write over a file from an offset on; durable on every replica when this returns
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  echo -n hello | hercules write /disks/a --offset 4096
  hercules write /disks/a --offset 0 header.bin")]
pub(crate) struct Write {
    /// Path in the cluster; the file must be there
    #[arg(value_name = "REMOTE", value_parser = parse_path)]
    remote: NamePath,
    /// Local file; - is standard input
    #[arg(value_name = "LOCAL", default_value = "-")]
    local: PathBuf,
    /// Where the first byte goes, at most the length of the file; what reaches past the end extends it
    #[arg(long, value_name = "BYTES")]
    offset: u64,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

#[derive(Serialize)]
struct Done<'a> {
    path: &'a str,
    offset: u64,
    length: u64,
}

impl Write {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// Bytes that could not be made durable; those before them are.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let mut pieces = Pieces::open(&self.local, true)?;
        let (mut length, mut pending) = (0, BytesMut::new());
        loop {
            let piece = pieces.next().await?;
            pending.extend_from_slice(piece.as_deref().unwrap_or_default());
            if pending.len() >= AT_ONCE || (piece.is_none() && !pending.is_empty()) {
                length += client.write_at(&self.remote, self.offset + length, pending.split().freeze()).await?;
            }
            if piece.is_none() {
                break;
            }
        }
        let done = Done { path: self.remote.as_str(), offset: self.offset, length };
        self.output.print(&done, format!("{}  offset {}, {length} bytes", self.remote, self.offset))
    }
}
