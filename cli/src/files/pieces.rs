//! Local bytes in pieces, read ahead by a thread of their own: reading a file must not hold up the network.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc;
use wire::limits::PAYLOAD_LEN_MAX;

use crate::exit::Failure;

/// Pieces read ahead of the network.
const AHEAD: usize = 4;

/// Whether a path means standard input or output.
pub(super) fn is_dash(path: &Path) -> bool {
    path == Path::new("-")
}

/// A local file, or standard input.
pub(super) struct Pieces {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    /// Length of the file when it was opened; of standard input unknown.
    pub(super) len: Option<u64>,
}

impl Pieces {
    /// Opens a file, or standard input for `-`. `whole`: pieces of 1 MiB, the last one excepted;
    /// else a piece is whatever one read gave.
    pub(super) fn open(path: &Path, whole: bool) -> Result<Self, Failure> {
        if is_dash(path) {
            return Ok(Self::read(io::stdin(), None, whole));
        }
        let named = |error: io::Error| Failure::from(error).context(path.display());
        let file = File::open(path).map_err(named)?;
        let metadata = file.metadata().map_err(named)?;
        if metadata.is_dir() {
            return Err(named(io::ErrorKind::IsADirectory.into()).remedy("give -r to take a whole directory"));
        }
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Self::read(file, len, whole))
    }

    fn read(mut source: impl Read + Send + 'static, len: Option<u64>, whole: bool) -> Self {
        let (sender, receiver) = mpsc::channel(AHEAD);
        // Not a task of the runtime: nobody can interrupt a read of a terminal, and a runtime waits for its tasks.
        thread::spawn(move || {
            loop {
                let piece = if whole { full_piece(&mut source) } else { one_read(&mut source) };
                let end = piece.as_ref().map_or(true, Bytes::is_empty);
                if piece.as_ref().is_ok_and(Bytes::is_empty) || sender.blocking_send(piece).is_err() || end {
                    return;
                }
            }
        });
        Self { receiver, len }
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        Ok(self.receiver.recv().await.transpose()?)
    }
}

fn full_piece(source: &mut impl Read) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PAYLOAD_LEN_MAX as usize);
    source.take(u64::from(PAYLOAD_LEN_MAX)).read_to_end(&mut piece)?;
    Ok(piece.into())
}

fn one_read(source: &mut impl Read) -> io::Result<Bytes> {
    let mut piece = vec![0; PAYLOAD_LEN_MAX as usize];
    loop {
        match source.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(len) => {
                piece.truncate(len);
                return Ok(piece.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lengths(mut pieces: Pieces) -> Vec<usize> {
        let mut out = Vec::new();
        while let Some(piece) = pieces.next().await.unwrap() {
            out.push(piece.len());
        }
        out
    }

    #[tokio::test]
    async fn all_pieces_but_the_last_are_whole() {
        let mib = PAYLOAD_LEN_MAX as usize;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for (len, want) in [(0, vec![]), (mib, vec![mib]), (2 * mib + 1, vec![mib, mib, 1])] {
            std::fs::write(&path, vec![1_u8; len]).unwrap();
            let pieces = Pieces::open(&path, true).unwrap();
            assert_eq!(pieces.len, Some(len as u64));
            assert_eq!(lengths(pieces).await, want);
        }
    }

    #[tokio::test]
    async fn an_error_while_reading_arrives_and_is_the_end() {
        struct Broken(u32);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0 == 1 { Ok(buffer.len().min(3)) } else { Err(io::Error::other("broken")) }
            }
        }
        let mut pieces = Pieces::read(Broken(0), None, false);
        assert_eq!(pieces.next().await.unwrap().unwrap().len(), 3);
        assert!(pieces.next().await.is_err());
        assert_eq!(pieces.next().await.unwrap(), None);
    }

    #[test]
    fn a_missing_file_and_a_directory_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Pieces::open(&folder.path().join("x"), true).err().unwrap();
        assert_eq!(missing.code, 66);
        let directory = Pieces::open(folder.path(), true).err().unwrap();
        assert!(directory.remedy.contains("-r"), "{directory}");
    }
}
