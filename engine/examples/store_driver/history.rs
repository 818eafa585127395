//! The log of a run: per chunk, the states that its operations lead to, and which was acknowledged.
//!
//! One line per fact, in order. Every line carries the number of writes and flushes that were recorded of
//! the device below, read when the fact was one already: what a line claims was made durable by a flush
//! among those.
//!
//! ```text
//! issue   POSITION CHUNK NUMBER KIND STATE EPOCH PROMISED LAST_SEQ CLOSED FILLED FIXED PIECE_SEED PIECE_AT PIECE_LEN
//! acked   POSITION CHUNK NUMBER
//! refused POSITION CHUNK NUMBER      it changed nothing
//! found   POSITION CHUNK NUMBER      after a restart: this state, and it is durable
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

/// Bytes of content: made from a seed, so that no two pieces are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) seed: u64,
    /// Where in the chunk: at its end, or over what earlier pieces have put there.
    pub(crate) at: u32,
    pub(crate) len: u32,
}

impl Piece {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut state = self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut out = Vec::with_capacity(self.len as usize + 8);
        while out.len() < self.len as usize {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            out.extend_from_slice(&state.to_le_bytes());
        }
        out.truncate(self.len as usize);
        out
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Absent,
    Open,
    Sealed,
    Condemned,
}

const LIVES: [(Life, &str); 4] =
    [(Life::Absent, "absent"), (Life::Open, "open"), (Life::Sealed, "sealed"), (Life::Condemned, "condemned")];

/// A chunk after some operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snap {
    pub(crate) life: Life,
    pub(crate) epoch: u32,
    pub(crate) promised: u32,
    pub(crate) last_seq: u64,
    pub(crate) closed: bool,
    pub(crate) filled: bool,
    /// Open again after it was sealed: only what it has is overwritten.
    pub(crate) fixed: bool,
    /// In the order of their operations.
    pub(crate) pieces: Vec<Piece>,
}

impl Snap {
    pub(crate) const ABSENT: Self = Self {
        life: Life::Absent,
        epoch: 0,
        promised: 0,
        last_seq: 0,
        closed: false,
        filled: false,
        fixed: false,
        pieces: Vec::new(),
    };

    pub(crate) fn len(&self) -> u32 {
        self.pieces.iter().map(|piece| piece.at + piece.len).max().unwrap_or(0)
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        let mut content = vec![0; self.len() as usize];
        for piece in &self.pieces {
            content[piece.at as usize..][..piece.len as usize].copy_from_slice(&piece.bytes());
        }
        content
    }
}

/// One chunk, since the last restart.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// Number of the first of `snaps`.
    pub(crate) first: usize,
    pub(crate) snaps: Vec<Snap>,
    /// Number of the newest state that was acknowledged.
    pub(crate) acked: usize,
}

impl History {
    fn new() -> Self {
        Self { first: 0, snaps: vec![Snap::ABSENT], acked: 0 }
    }

    fn snap(&self, number: usize) -> &Snap {
        &self.snaps[number - self.first]
    }
}

/// What a log says.
#[derive(Default)]
pub(crate) struct Histories {
    pub(crate) chunks: BTreeMap<u64, History>,
    pub(crate) acks: u64,
    pub(crate) last_position: u64,
}

impl Histories {
    /// Reads the lines up to a position.
    pub(crate) fn read(path: &Path, until: u64) -> Self {
        let mut all = Self::default();
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // The last line of a killed process may be half a line: it claims nothing.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            if number(1) > until {
                break;
            }
            all.last_position = number(1);
            let history = all.chunks.entry(number(2)).or_insert_with(History::new);
            let index = usize::try_from(number(3)).unwrap();
            match words[0] {
                "issue" => {
                    let small = |at: usize| u32::try_from(number(at)).unwrap();
                    let mut pieces = history.snap(index - 1).pieces.clone();
                    let piece = Piece { seed: number(12), at: small(13), len: small(14) };
                    pieces.extend((piece.len > 0).then_some(piece));
                    assert_eq!(index, history.first + history.snaps.len(), "{line}");
                    history.snaps.push(Snap {
                        life: LIVES.into_iter().find(|(_, name)| *name == words[5]).unwrap().0,
                        epoch: small(6),
                        promised: small(7),
                        last_seq: number(8),
                        closed: number(9) == 1,
                        filled: number(10) == 1,
                        fixed: number(11) == 1,
                        pieces,
                    });
                }
                "acked" => {
                    history.acked = history.acked.max(index);
                    all.acks += 1;
                }
                "refused" => {
                    assert_eq!(index + 1, history.first + history.snaps.len(), "only the newest is refused: {line}");
                    history.snaps.pop();
                }
                "found" => {
                    let mut snap = history.snap(index).clone();
                    // A promise is kept even when the data before it is not.
                    snap.promised = u32::try_from(number(4)).unwrap();
                    *history = History { first: index, snaps: vec![snap], acked: index };
                }
                other => panic!("a line that says {other:?}"),
            }
        }
        all
    }
}

/// Writes lines.
pub(crate) struct Log {
    file: Mutex<File>,
    position: Option<File>,
}

impl Log {
    pub(crate) fn append_to(path: &Path, position: Option<&Path>) -> Self {
        let file = File::options().append(true).create(true).open(path).unwrap();
        Self { file: Mutex::new(file), position: position.map(|path| File::open(path).unwrap()) }
    }

    /// Entries in the record of the device: the third word of its first sector, which is rewritten
    /// with every entry before the write or flush is answered.
    fn position(&self) -> u64 {
        let mut count = [0; 8];
        if let Some(file) = &self.position {
            file.read_exact_at(&mut count, 16).unwrap();
        }
        u64::from_le_bytes(count)
    }

    fn line(&self, word: &str, rest: &str) {
        // One at a time, so that positions rise from line to line.
        let mut file = self.file.lock().unwrap();
        let line = format!("{word} {} {rest}\n", self.position());
        file.write_all(line.as_bytes()).unwrap();
    }

    pub(crate) fn issue(&self, chunk: u64, number: usize, kind: &str, snap: &Snap, piece: Option<Piece>) {
        let life = LIVES.into_iter().find(|(life, _)| *life == snap.life).unwrap().1;
        let piece = piece.unwrap_or(Piece { seed: 0, at: 0, len: 0 });
        self.line(
            "issue",
            &format!(
                "{chunk} {number} {kind} {life} {} {} {} {} {} {} {} {} {}",
                snap.epoch,
                snap.promised,
                snap.last_seq,
                u8::from(snap.closed),
                u8::from(snap.filled),
                u8::from(snap.fixed),
                piece.seed,
                piece.at,
                piece.len
            ),
        );
    }

    pub(crate) fn acked(&self, chunk: u64, number: usize) {
        self.line("acked", &format!("{chunk} {number}"));
    }

    pub(crate) fn refused(&self, chunk: u64, number: usize) {
        self.line("refused", &format!("{chunk} {number}"));
    }

    pub(crate) fn found(&self, chunk: u64, number: usize, promised: u32) {
        self.line("found", &format!("{chunk} {number} {promised}"));
    }
}
