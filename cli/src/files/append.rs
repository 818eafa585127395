//! `hercules append`: records at the end of a file, each whole and exactly once.

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use clap::Args;
use client::{Appended, Client};
use serde::Serialize;
use wire::limits::APPEND_LEN_MAX;
use wire::{Kind, NamePath};

use super::pieces::Pieces;
use crate::cluster::{Cluster, parse_path};
use crate::exit::{Code, Failure};
use crate::output::Output;

/// Append a record of at most 16 MiB; it is durable on every replica when this returns
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  echo hello | hercules append /logs/a
  hercules append /logs/a record.bin
  tail -f access.log | hercules append --lines /logs/access")]
pub(crate) struct Append {
    /// Path in the cluster; the file is made when there is none
    #[arg(value_name = "REMOTE", value_parser = parse_path)]
    remote: NamePath,
    /// Local file; - is standard input
    #[arg(value_name = "LOCAL", default_value = "-")]
    local: PathBuf,
    /// Append lines as they come: a line is never torn, several may share a record
    #[arg(long)]
    lines: bool,
    /// Fail when there is no such file
    #[arg(long)]
    no_create: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

#[derive(Serialize)]
struct Done<'a> {
    path: &'a str,
    offset: u64,
    length: u32,
    replicas: u32,
}

impl Append {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// A record that could not be made durable; those before it are.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let mut pieces = Pieces::open(&self.local, !self.lines)?;
        let mut records = Records::new(self.lines);
        while let Some(piece) = pieces.next().await? {
            if let Some(record) = records.push(&piece)? {
                self.append(&client, record).await?;
            }
        }
        match records.rest() {
            Some(record) => self.append(&client, record).await,
            None => Ok(()),
        }
    }

    async fn append(&self, client: &Client, record: Bytes) -> Result<(), Failure> {
        let appended = match client.append(&self.remote, record.clone()).await {
            Err(error) if error.kind() == Kind::NotFound && !self.no_create => {
                client.create(&self.remote, false).await?;
                client.append(&self.remote, record).await?
            }
            appended => appended?,
        };
        let Appended { offset, len, replicas } = appended;
        let done = Done { path: self.remote.as_str(), offset, length: len, replicas };
        self.output.print(&done, format!("{}  offset {offset}, {len} bytes, {replicas} replicas", self.remote))
    }
}

/// Cuts what comes in into records.
struct Records {
    lines: bool,
    pending: BytesMut,
}

impl Records {
    fn new(lines: bool) -> Self {
        Self { lines, pending: BytesMut::new() }
    }

    /// Takes more bytes; by lines, gives back everything up to the last end of a line.
    fn push(&mut self, piece: &[u8]) -> Result<Option<Bytes>, Failure> {
        if self.pending.len() + piece.len() > APPEND_LEN_MAX as usize {
            let what = if self.lines { "a line" } else { "the input" };
            return Err(Failure::new(Code::Usage, format!("{what} is longer than a record may be: 16 MiB"))
                .remedy("`hercules put` takes files of any length; --lines cuts text into records"));
        }
        self.pending.extend_from_slice(piece);
        if !self.lines {
            return Ok(None);
        }
        let end = self.pending.iter().rposition(|byte| *byte == b'\n');
        Ok(end.map(|end| self.pending.split_to(end + 1).freeze()))
    }

    /// What is left at the end of the input.
    fn rest(self) -> Option<Bytes> {
        (!self.pending.is_empty()).then(|| self.pending.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_together_and_the_last_needs_no_end() {
        let mut records = Records::new(true);
        assert_eq!(records.push(b"one\ntwo\nthr").unwrap().as_deref(), Some(&b"one\ntwo\n"[..]));
        assert_eq!(records.push(b"e").unwrap(), None);
        assert_eq!(records.push(b"e\n").unwrap().as_deref(), Some(&b"three\n"[..]));
        records.push(b"four").unwrap();
        assert_eq!(records.rest().as_deref(), Some(&b"four"[..]));
    }

    #[test]
    fn without_lines_the_input_is_one_record_of_at_most_16_mib() {
        let mut records = Records::new(false);
        let piece = vec![b'\n'; 1 << 20];
        for _ in 0..16 {
            assert_eq!(records.push(&piece).unwrap(), None);
        }
        assert_eq!(records.push(b"x").unwrap_err().code, 2);
        assert_eq!(records.rest().unwrap().len(), 16 << 20);
    }
}
