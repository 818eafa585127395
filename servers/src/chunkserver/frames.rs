//! Frames from a connection: header and fields first, checked; the payload into an aligned buffer
//! when the reader knows that it wants it.

use std::io;

use engine::runtime::Runtime;
use wire::Body;
use wire::frame::{self, HEADER_LEN, Header};
use wire::limits::BLOCK_SIZE;
use wire::message::Malformed;

/// How much is taken from the socket at once while headers are read. What belongs to a payload is
/// copied once more, so this is small against a payload and large against a header with its fields.
const READ_AHEAD: usize = 8 << 10;

/// Why a connection ends. None of them is this server's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The bytes are not a frame.
    #[error("not a frame: {0}")]
    Frame(#[from] frame::Error),
    /// The fields are not those of the message.
    #[error("message {tag}: {cause}")]
    Message {
        /// Which message.
        tag: u16,
        /// What is wrong with it.
        cause: Malformed,
    },
    /// The payload is not what its checksums say.
    #[error("payload of message {0} does not match its checksums")]
    Payload(u16),
    /// The peer went away, or the socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A received header with its fields. The header is verified, the fields when they are opened.
pub(crate) struct Received {
    /// The header.
    pub(crate) header: Header,
    fields: Vec<u8>,
}

impl Received {
    /// Takes the message out.
    pub(crate) fn open<B: Body>(&self) -> Result<B, Broken> {
        frame::open(&self.header, &self.fields).map_err(|cause| self.malformed(cause))
    }

    /// The fields as they came, unverified.
    pub(crate) fn fields(&self) -> &[u8] {
        &self.fields
    }

    /// This frame breaks the connection.
    pub(crate) fn malformed(&self, cause: Malformed) -> Broken {
        Broken::Message { tag: self.header.tag, cause }
    }

    /// Length of the payload that follows.
    pub(crate) fn payload_len(&self) -> usize {
        self.header.payload_len as usize
    }
}

/// Reads frames from one connection, in order.
pub(crate) struct FrameReader<R: Runtime> {
    rt: R,
    reader: R::Reader,
    ahead: Vec<u8>,
    taken: usize,
}

impl<R: Runtime> FrameReader<R> {
    pub(crate) fn new(rt: R, reader: R::Reader) -> Self {
        Self { rt, reader, ahead: Vec::new(), taken: 0 }
    }

    /// The connection back, after a frame behind which nothing can have come yet.
    #[cfg(test)]
    pub(crate) fn into_reader(self) -> R::Reader {
        assert_eq!(self.taken, self.ahead.len(), "nothing was read ahead");
        self.reader
    }

    /// The next frame; `None` when the peer closed between frames. Its payload must be taken or
    /// skipped before the next call. Dropping the future loses the connection.
    pub(crate) async fn next(&mut self) -> Result<Option<Received>, Broken> {
        if !self.fill(HEADER_LEN).await? {
            return Ok(None);
        }
        let Some(header) = Header::decode(&self.ahead[self.taken..]) else { return Err(unexpected_eof().into()) };
        let header = header?;
        self.taken += HEADER_LEN;
        let fields_len = header.fields_len as usize;
        if !self.fill(fields_len).await? {
            return Err(unexpected_eof().into());
        }
        let fields = self.ahead[self.taken..self.taken + fields_len].to_vec();
        self.taken += fields_len;
        Ok(Some(Received { header, fields }))
    }

    /// The payload of the frame whose header came last, in a buffer rounded up to whole blocks; the
    /// padding is zero. Waits for a buffer: that is the backpressure on the sender.
    pub(crate) async fn payload(&mut self, len: usize) -> Result<R::Buf, Broken> {
        let rounded = len.next_multiple_of(BLOCK_SIZE as usize);
        let mut buf = self.rt.alloc(rounded).await;
        let have = len.min(self.ahead.len() - self.taken);
        buf.as_mut()[..have].copy_from_slice(&self.ahead[self.taken..self.taken + have]);
        self.taken += have;
        buf.as_mut()[len..].fill(0);
        if have < len {
            buf = self.rt.recv_exact(&mut self.reader, buf, have..len).await?;
        }
        Ok(self.rt.freeze(buf))
    }

    /// Throws the payload away.
    pub(crate) async fn skip(&mut self, len: usize) -> Result<(), Broken> {
        let mut left = len;
        while left > 0 {
            let step = left.min(READ_AHEAD);
            if !self.fill(step).await? {
                return Err(unexpected_eof().into());
            }
            self.taken += step;
            left -= step;
        }
        Ok(())
    }

    /// Makes at least `want` bytes available; `false` when the peer closed before the first of them.
    async fn fill(&mut self, want: usize) -> Result<bool, Broken> {
        if self.ahead.len() - self.taken >= want {
            return Ok(true);
        }
        self.ahead.drain(..self.taken);
        self.taken = 0;
        while self.ahead.len() < want {
            let before = self.ahead.len();
            let room = READ_AHEAD.max(want) - before;
            let ahead = std::mem::take(&mut self.ahead);
            self.ahead = self.rt.recv_some(&mut self.reader, ahead, room).await?;
            if self.ahead.len() == before {
                return if before == 0 { Ok(false) } else { Err(unexpected_eof().into()) };
            }
        }
        Ok(true)
    }
}

fn unexpected_eof() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed inside a frame")
}
