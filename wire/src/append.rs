//! APPEND: record append (GFS section 3.3), client → head of the chain.
//!
//! ```text
//! APPEND  chunk 8 | epoch 4 | flags 4 | stream 16 | op 8 | first_unacked 8 | op_len 4 | part 2 | parts 2 | crc 4n
//! then the payload: one part of the operation, at most 1 MiB
//! OK      chunk 8 | offset 4 | len 4 | epoch 4 | zero 4 | committed_seq 8
//! CLOSE   chunk 8 | epoch 4 | zero 4 | stream 16
//! ```

use crate::checksum::block_count;
use crate::ids::{ChunkHandle, Epoch, Seq, StreamId};
use crate::layout::{Reader, Writer};
use crate::limits::{APPEND_LEN_MAX, CHUNK_SIZE, PAYLOAD_LEN_MAX};
use crate::message::{Body, Malformed, Request, tag};
use crate::op::OpId;

/// Flag of [`Append`]: nothing follows in this chunk, the head seals it when this operation is committed.
pub const LAST: u32 = 1;

/// One part of one operation. All parts but the last carry 1 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Where to.
    pub chunk: ChunkHandle,
    /// The chain the client knows.
    pub epoch: Epoch,
    /// [`LAST`] or zero.
    pub flags: u32,
    /// Which operation: the same on every retry.
    pub id: OpId,
    /// Lowest operation of the stream that has no answer yet.
    pub first_unacked: u64,
    /// Length of the whole operation in bytes, at most [`APPEND_LEN_MAX`]. Zero with [`LAST`] seals only.
    pub op_len: u32,
    /// Which part this is, from zero.
    pub part: u16,
    /// How many parts there are, at least one.
    pub parts: u16,
    /// CRC-32C of each 4 KiB of the payload.
    pub crcs: Vec<u32>,
}

/// Committed: durable on every member of the chain, at this offset, exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The chunk it landed in; for a retry across a roll an earlier one than was asked.
    pub chunk: ChunkHandle,
    /// Offset in that chunk, bytes.
    pub offset: u32,
    /// Length of the operation, bytes.
    pub len: u32,
    /// Epoch of the chain that answered.
    pub epoch: Epoch,
    /// Everything up to this entry is committed.
    pub committed_seq: Seq,
}

impl Append {
    /// How many parts an operation of `op_len` bytes has.
    #[must_use]
    pub fn part_count(op_len: u32) -> u32 {
        op_len.div_ceil(PAYLOAD_LEN_MAX).max(1)
    }

    /// Length of this part, bytes: 1 MiB, except for the last one.
    fn part_len(&self) -> u32 {
        self.op_len.saturating_sub(u32::from(self.part).saturating_mul(PAYLOAD_LEN_MAX)).min(PAYLOAD_LEN_MAX)
    }
}

impl Body for Append {
    const TAG: u16 = tag::APPEND;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(64 + self.crcs.len() * 4);
        out.u64(self.chunk.0);
        out.u32(self.epoch.0);
        out.u32(self.flags);
        out.bytes(&self.id.stream.0);
        out.u64(self.id.op);
        out.u64(self.first_unacked);
        out.u32(self.op_len);
        out.u16(self.part);
        out.u16(self.parts);
        out.u32s(&self.crcs);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let out = Self {
            chunk: ChunkHandle(input.u64()?),
            epoch: Epoch(input.u32()?),
            flags: input.u32()?,
            id: OpId { stream: StreamId(input.array()?), op: input.u64()? },
            first_unacked: input.u64()?,
            op_len: input.u32()?,
            part: input.u16()?,
            parts: input.u16()?,
            crcs: input.u32s()?,
        };
        if out.flags & !LAST != 0 {
            return Err(Malformed::Field("flags"));
        }
        if out.op_len > APPEND_LEN_MAX || (out.op_len == 0 && out.flags != LAST) {
            return Err(Malformed::Field("op_len"));
        }
        if out.part >= out.parts || u32::from(out.parts) != Self::part_count(out.op_len) {
            return Err(Malformed::Field("parts"));
        }
        if out.crcs.len() != block_count(out.part_len() as usize) {
            return Err(Malformed::Field("crcs"));
        }
        if out.id.op == 0 || out.first_unacked == 0 || out.first_unacked > out.id.op {
            return Err(Malformed::Field("op"));
        }
        Ok(out)
    }

    fn payload_len(&self) -> u32 {
        self.part_len()
    }
}

impl Request for Append {
    type Reply = Appended;
}

impl Body for Appended {
    const TAG: u16 = tag::APPEND_OK;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(32);
        out.u64(self.chunk.0);
        out.u32(self.offset);
        out.u32(self.len);
        out.u32(self.epoch.0);
        out.u32(0);
        out.u64(self.committed_seq.0);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let chunk = ChunkHandle(input.u64()?);
        let offset = input.u32()?;
        let len = input.u32()?;
        let epoch = Epoch(input.u32()?);
        if input.u32()? != 0 {
            return Err(Malformed::Field("zero"));
        }
        let committed_seq = Seq(input.u64()?);
        input.end()?;
        if u64::from(offset) + u64::from(len) > u64::from(CHUNK_SIZE) {
            return Err(Malformed::Field("len"));
        }
        Ok(Self { chunk, offset, len, epoch, committed_seq })
    }
}

/// Client → head: the stream has all its answers and ends; its line in the dedup table may go.
/// Has no answer: a lost one is made up for by the forgetting of silent streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// Where the stream wrote last.
    pub chunk: ChunkHandle,
    /// The chain the client knows.
    pub epoch: Epoch,
    /// Which stream.
    pub stream: StreamId,
}

impl Body for Close {
    const TAG: u16 = tag::CLOSE;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(32);
        out.u64(self.chunk.0);
        out.u32(self.epoch.0);
        out.u32(0);
        out.bytes(&self.stream.0);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let chunk = ChunkHandle(input.u64()?);
        let epoch = Epoch(input.u32()?);
        if input.u32()? != 0 {
            return Err(Malformed::Field("zero"));
        }
        let stream = StreamId(input.array()?);
        input.end()?;
        Ok(Self { chunk, epoch, stream })
    }
}
