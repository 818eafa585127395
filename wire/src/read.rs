//! READ: client → any member. The answer carries whole blocks and their checksums; the client
//! verifies them again and cuts the range it wanted.
//!
//! ```text
//! READ     chunk 8 | epoch 4 | offset 4 | len 4 | zero 4 | min_seq 8
//! DATA     chunk 8 | offset 4 | len 4 | committed_len 4 | epoch 4 | committed_seq 8 | crc 4n   then n blocks
//! VERSION  chunk 8 | epoch 4 | zero 4
//! OK       committed_seq 8 | committed_len 4 | zero 4
//! ```

use crate::checksum::block_count;
use crate::ids::{ChunkHandle, Epoch, Seq};
use crate::layout::{Reader, Writer};
use crate::limits::{BLOCK_SIZE, CHUNK_SIZE, PAYLOAD_LEN_MAX};
use crate::message::{Body, Malformed, Request, tag};

/// Asks for a range of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The chain the client knows; zero accepts any.
    pub epoch: Epoch,
    /// First byte wanted, any alignment.
    pub offset: u32,
    /// Bytes wanted, 1 to 1 MiB; the blocks touched are at most 1 MiB.
    pub len: u32,
    /// The member answers only when it knows everything up to here to be committed; zero asks for
    /// what it has.
    pub min_seq: Seq,
}

/// Blocks of a chunk. The last one is padded with zeros to 4 KiB, and its checksum covers the padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Chunk offset of the first byte of the payload, a multiple of 4,096.
    pub offset: u32,
    /// Bytes of the payload that are content, from its start; what follows is padding. May end
    /// before the range asked for when the committed length does.
    pub len: u32,
    /// What this member knows to be committed, bytes.
    pub committed_len: u32,
    /// Epoch of the replica that answered.
    pub epoch: Epoch,
    /// Everything up to this entry is committed.
    pub committed_seq: Seq,
    /// CRC-32C of each block of the payload.
    pub crcs: Vec<u32>,
}

impl Body for Read {
    const TAG: u16 = tag::READ;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(32);
        out.u64(self.chunk.0);
        out.u32(self.epoch.0);
        out.u32(self.offset);
        out.u32(self.len);
        out.u32(0);
        out.u64(self.min_seq.0);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let chunk = ChunkHandle(input.u64()?);
        let epoch = Epoch(input.u32()?);
        let offset = input.u32()?;
        let len = input.u32()?;
        if input.u32()? != 0 {
            return Err(Malformed::Field("zero"));
        }
        let min_seq = Seq(input.u64()?);
        input.end()?;
        let end = u64::from(offset) + u64::from(len);
        if len == 0 || end > u64::from(CHUNK_SIZE) {
            return Err(Malformed::Field("len"));
        }
        let first = u64::from(offset / BLOCK_SIZE * BLOCK_SIZE);
        if end.next_multiple_of(u64::from(BLOCK_SIZE)) - first > u64::from(PAYLOAD_LEN_MAX) {
            return Err(Malformed::Field("len"));
        }
        Ok(Self { chunk, epoch, offset, len, min_seq })
    }
}

impl Request for Read {
    type Reply = Data;
}

impl Body for Data {
    const TAG: u16 = tag::DATA;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(32 + self.crcs.len() * 4);
        out.u64(self.chunk.0);
        out.u32(self.offset);
        out.u32(self.len);
        out.u32(self.committed_len);
        out.u32(self.epoch.0);
        out.u64(self.committed_seq.0);
        out.u32s(&self.crcs);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let out = Self {
            chunk: ChunkHandle(input.u64()?),
            offset: input.u32()?,
            len: input.u32()?,
            committed_len: input.u32()?,
            epoch: Epoch(input.u32()?),
            committed_seq: Seq(input.u64()?),
            crcs: input.u32s()?,
        };
        if !out.offset.is_multiple_of(BLOCK_SIZE) {
            return Err(Malformed::Field("offset"));
        }
        if out.len > PAYLOAD_LEN_MAX || u64::from(out.offset) + u64::from(out.len) > u64::from(CHUNK_SIZE) {
            return Err(Malformed::Field("len"));
        }
        if out.committed_len > CHUNK_SIZE {
            return Err(Malformed::Field("committed_len"));
        }
        if out.crcs.len() != block_count(out.len as usize) {
            return Err(Malformed::Field("crcs"));
        }
        Ok(out)
    }

    fn payload_len(&self) -> u32 {
        self.len.next_multiple_of(BLOCK_SIZE)
    }
}

/// How far is this chunk committed? Answered by the head: a lower bound of what any later read sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The chain the asker knows; zero accepts any.
    pub epoch: Epoch,
}

/// The answer to [`Version`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionOk {
    /// Everything up to this entry is committed.
    pub committed_seq: Seq,
    /// Bytes committed.
    pub committed_len: u32,
}

impl Body for Version {
    const TAG: u16 = tag::VERSION;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(16);
        out.u64(self.chunk.0);
        out.u32(self.epoch.0);
        out.u32(0);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let out = Self { chunk: ChunkHandle(input.u64()?), epoch: Epoch(input.u32()?) };
        if input.u32()? != 0 {
            return Err(Malformed::Field("zero"));
        }
        input.end()?;
        Ok(out)
    }
}

impl Request for Version {
    type Reply = VersionOk;
}

impl Body for VersionOk {
    const TAG: u16 = tag::VERSION_OK;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(16);
        out.u64(self.committed_seq.0);
        out.u32(self.committed_len);
        out.u32(0);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let out = Self { committed_seq: Seq(input.u64()?), committed_len: input.u32()? };
        if input.u32()? != 0 {
            return Err(Malformed::Field("zero"));
        }
        input.end()?;
        if out.committed_len > CHUNK_SIZE {
            return Err(Malformed::Field("committed_len"));
        }
        Ok(out)
    }
}
