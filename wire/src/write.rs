//! WRITE: bytes below the end of a re-opened chunk, client → head of the chain.
//!
//! ```text
//! WRITE   chunk 8 | epoch 4 | offset 4 | stream 16 | op 8 | first_unacked 8 | len 4 | zero 4 | crc 4n
//! then the payload
//! ```
//!
//! The answer is that of an append: [`Appended`] with the offset that was asked for.

use crate::append::Appended;
use crate::checksum::block_count;
use crate::ids::{ChunkHandle, Epoch, StreamId};
use crate::layout::{Reader, Writer};
use crate::limits::{CHUNK_SIZE, PAYLOAD_LEN_MAX};
use crate::message::{Body, Malformed, Request, tag};
use crate::op::OpId;

/// One positional write: readers see all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where to.
    pub chunk: ChunkHandle,
    /// The chain the client knows.
    pub epoch: Epoch,
    /// Offset in the chunk, bytes.
    pub offset: u32,
    /// Which operation: the same on every retry.
    pub id: OpId,
    /// Lowest operation of the stream that has no answer yet.
    pub first_unacked: u64,
    /// Length in bytes, 1 to [`PAYLOAD_LEN_MAX`].
    pub len: u32,
    /// CRC-32C of each 4 KiB of the payload, counted from its start.
    pub crcs: Vec<u32>,
}

impl Body for Write {
    const TAG: u16 = tag::WRITE;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(64 + self.crcs.len() * 4);
        out.u64(self.chunk.0);
        out.u32(self.epoch.0);
        out.u32(self.offset);
        out.bytes(&self.id.stream.0);
        out.u64(self.id.op);
        out.u64(self.first_unacked);
        out.u32(self.len);
        out.u32(0);
        out.u32s(&self.crcs);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let chunk = ChunkHandle(input.u64()?);
        let epoch = Epoch(input.u32()?);
        let offset = input.u32()?;
        let id = OpId { stream: StreamId(input.array()?), op: input.u64()? };
        let first_unacked = input.u64()?;
        let len = input.u32()?;
        if input.u32()? != 0 {
            return Err(Malformed::Field("zero"));
        }
        let crcs = input.u32s()?;
        if len == 0 || len > PAYLOAD_LEN_MAX || u64::from(offset) + u64::from(len) > u64::from(CHUNK_SIZE) {
            return Err(Malformed::Field("len"));
        }
        if crcs.len() != block_count(len as usize) {
            return Err(Malformed::Field("crcs"));
        }
        if id.op == 0 || first_unacked == 0 || first_unacked > id.op {
            return Err(Malformed::Field("op"));
        }
        Ok(Self { chunk, epoch, offset, id, first_unacked, len, crcs })
    }

    fn payload_len(&self) -> u32 {
        self.len
    }
}

impl Request for Write {
    type Reply = Appended;
}
