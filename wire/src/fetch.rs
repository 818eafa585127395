//! FETCH: member → the seal's source: the bytes a shorter replica lacks (replication.md, S8).
//!
//! Unlike a read it looks at the durable length, not at the committed one, and is answered only
//! under the epoch that both have promised. The answer is a [`Data`].

use crate::ids::{ChunkHandle, Epoch};
use crate::layout::{Reader, Writer};
use crate::limits::{BLOCK_SIZE, CHUNK_SIZE, PAYLOAD_LEN_MAX};
use crate::message::{Body, Malformed, Request, tag};
use crate::read::Data;

/// Asks for whole blocks below the durable length.
///
/// ```text
/// FETCH    chunk 8 | epoch 4 | offset 4 | len 4 | zero 4
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The promised epoch of the seal.
    pub epoch: Epoch,
    /// First byte, a multiple of 4,096.
    pub offset: u32,
    /// Bytes, 1 to 1 MiB.
    pub len: u32,
}

impl Body for Fetch {
    const TAG: u16 = tag::FETCH;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(24);
        out.u64(self.chunk.0);
        out.u32(self.epoch.0);
        out.u32(self.offset);
        out.u32(self.len);
        out.u32(0);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let out = Self {
            chunk: ChunkHandle(input.u64()?),
            epoch: Epoch(input.u32()?),
            offset: input.u32()?,
            len: input.u32()?,
        };
        if input.u32()? != 0 {
            return Err(Malformed::Field("zero"));
        }
        input.end()?;
        if !out.offset.is_multiple_of(BLOCK_SIZE) {
            return Err(Malformed::Field("offset"));
        }
        if out.len == 0
            || out.len > PAYLOAD_LEN_MAX
            || u64::from(out.offset) + u64::from(out.len) > u64::from(CHUNK_SIZE)
        {
            return Err(Malformed::Field("len"));
        }
        Ok(out)
    }
}

impl Request for Fetch {
    type Reply = Data;
}
