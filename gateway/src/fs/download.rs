//! The body of an answer that carries bytes of a file. Either all promised bytes come, or the
//! connection breaks; there is no short success.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use wire::NamePath;
use wire::namespace::Attr;

use crate::app::App;
use crate::fail::Fail;
use crate::files::{Files, Read};

/// A piece of a body.
pub(crate) enum Part {
    /// As it is.
    Text(Bytes),
    /// From the file.
    Bytes(Range<u64>),
}

impl Part {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Bytes(range) => range.end - range.start,
        }
    }
}

/// A body of these parts. The first bytes are fetched before this returns, so that a file that cannot be
/// read at all gets an honest status.
pub(crate) async fn download<F: Files>(
    app: &App<F>,
    path: &NamePath,
    attr: &Attr,
    parts: Vec<Part>,
) -> Result<Body, Fail> {
    let total: u64 = parts.iter().map(Part::len).sum();
    let mut source =
        Source { app: app.clone(), path: path.clone(), attr: attr.clone(), parts: parts.into(), reading: None };
    let first = match source.next().await {
        None => return Ok(Body::empty()),
        Some(Err(error)) => return Err(Fail::of(&error, path)),
        Some(Ok(first)) if first.len() as u64 == total => return Ok(Body::from(first)),
        Some(Ok(first)) => first,
    };
    let rest = stream::unfold((Some(first), source), |(first, mut source)| async move {
        if let Some(first) = first {
            return Some((Ok(first), (None, source)));
        }
        let piece = source.next().await?.map_err(|error| source.broken(&error));
        Some((piece, (None, source)))
    });
    Ok(Body::from_stream(rest))
}

struct Source<F: Files> {
    app: App<F>,
    path: NamePath,
    attr: Attr,
    parts: VecDeque<Part>,
    /// The read under way, and how many bytes it still owes.
    reading: Option<(F::Read, u64)>,
}

impl<F: Files> Source<F> {
    async fn next(&mut self) -> Option<Result<Bytes, client::Error>> {
        loop {
            if let Some((read, owed)) = &mut self.reading {
                if *owed > 0 {
                    let piece = read.next().await;
                    return Some(settle(piece, owed));
                }
                self.reading = None;
            }
            match self.parts.pop_front()? {
                Part::Text(text) => return Some(Ok(text)),
                Part::Bytes(range) => {
                    let owed = range.end - range.start;
                    self.reading = Some((self.app.files.read(&self.attr, range), owed));
                }
            }
        }
    }

    fn broken(&self, error: &client::Error) -> io::Error {
        self.app.metrics.broken_reads.fetch_add(1, Relaxed);
        tracing::warn!(path = %self.path, %error, "a read failed after its header was sent; the connection is broken off");
        io::Error::other("the file could not be read to its end")
    }
}

/// Takes a piece off what is owed; an early end, or more than was asked, is a failure.
fn settle(piece: Option<Result<Bytes, client::Error>>, owed: &mut u64) -> Result<Bytes, client::Error> {
    let piece = piece.unwrap_or_else(|| Err(wrong_len("the read ended before the range did")))?;
    match owed.checked_sub(piece.len() as u64) {
        Some(left) => *owed = left,
        None => return Err(wrong_len("the read gave more than the range")),
    }
    Ok(piece)
}

fn wrong_len(text: &str) -> client::Error {
    client::Error::new(wire::Kind::Corrupt, text)
}
