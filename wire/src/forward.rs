//! FWD and what flows against it: the stream between two neighbours of a chain.
//!
//! ```text
//! FWD     chunk 8 | epoch 4 | kind 1 | zero 3 | seq 8 | stream 16 | op 8 | first_unacked 8 | op_off 4 | op_len 4
//!         | offset 4 | length 4 | part 2 | parts 2 | zero 4 | committed_seq 8 | (FINAL: digest 16) | crc 4n
//!         then the payload
//! UP      chunk 8 | epoch 4 | zero 4 | durable_seq 8
//! COMMIT  chunk 8 | epoch 4 | zero 4 | committed_seq 8
//! NAK     chunk 8 | epoch 4 | reason 4 | next_seq 8
//! ```
//!
//! None of them has an answer of its own (`request_id` zero): UP is cumulative, a lost one is
//! covered by the next.

use crate::checksum::block_count;
use crate::ids::{ChunkHandle, Epoch, Seq, StreamId};
use crate::layout::{Reader, Writer};
use crate::limits::{APPEND_LEN_MAX, CHUNK_SIZE, PAYLOAD_LEN_MAX};
use crate::message::{Body, Malformed, tag};
use crate::op::OpId;

/// What an entry of the chunk's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum EntryKind {
    /// Bytes at the end.
    Append = 1,
    /// Bytes below the end.
    Overwrite = 2,
    /// A hole: zeros at the end, without payload.
    Zero = 3,
    /// Streams to drop from the dedup table.
    Forget = 4,
    /// The last entry of its epoch: carries length and digest, nothing follows.
    Final = 5,
}

impl EntryKind {
    /// Whether it changes bytes of the chunk.
    fn is_mutation(self) -> bool {
        matches!(self, Self::Append | Self::Overwrite | Self::Zero)
    }

    /// Whether [`Forward::length`] bytes follow the fields.
    fn has_payload(self) -> bool {
        matches!(self, Self::Append | Self::Overwrite | Self::Forget)
    }
}

/// One entry of the log, from a member to its successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The chain it belongs to.
    pub epoch: Epoch,
    /// What it is.
    pub kind: EntryKind,
    /// Its place in the epoch's order.
    pub seq: Seq,
    /// Whose operation.
    pub id: OpId,
    /// As the client sent it.
    pub first_unacked: u64,
    /// Chunk offset of the whole operation. [`EntryKind::Final`]: the final length.
    pub op_off: u32,
    /// Length of the whole operation.
    pub op_len: u32,
    /// Chunk offset of this part.
    pub offset: u32,
    /// Length of this part: that of the payload, except for [`EntryKind::Zero`].
    pub length: u32,
    /// Which part of the operation, from zero.
    pub part: u16,
    /// How many parts.
    pub parts: u16,
    /// The head knows everything up to here to be committed.
    pub committed_seq: Seq,
    /// [`EntryKind::Final`]: digest of the final content. Else zero.
    pub digest: [u8; 16],
    /// CRC-32C of each 4 KiB of the payload, counted from its start.
    pub crcs: Vec<u32>,
}

impl Body for Forward {
    const TAG: u16 = tag::FWD;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(120 + self.crcs.len() * 4);
        out.u64(self.chunk.0);
        out.u32(self.epoch.0);
        out.u8(self.kind as u8);
        out.bytes(&[0; 3]);
        out.u64(self.seq.0);
        out.bytes(&self.id.stream.0);
        out.u64(self.id.op);
        out.u64(self.first_unacked);
        out.u32(self.op_off);
        out.u32(self.op_len);
        out.u32(self.offset);
        out.u32(self.length);
        out.u16(self.part);
        out.u16(self.parts);
        out.u32(0);
        out.u64(self.committed_seq.0);
        if self.kind == EntryKind::Final {
            out.bytes(&self.digest);
        }
        out.u32s(&self.crcs);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let chunk = ChunkHandle(input.u64()?);
        let epoch = Epoch(input.u32()?);
        let kind = match input.u8()? {
            1 => EntryKind::Append,
            2 => EntryKind::Overwrite,
            3 => EntryKind::Zero,
            4 => EntryKind::Forget,
            5 => EntryKind::Final,
            _ => return Err(Malformed::Field("kind")),
        };
        if input.array::<3>()? != [0; 3] {
            return Err(Malformed::Field("zero"));
        }
        let seq = Seq(input.u64()?);
        let id = OpId { stream: StreamId(input.array()?), op: input.u64()? };
        let first_unacked = input.u64()?;
        let op_off = input.u32()?;
        let op_len = input.u32()?;
        let offset = input.u32()?;
        let length = input.u32()?;
        let part = input.u16()?;
        let parts = input.u16()?;
        if input.u32()? != 0 {
            return Err(Malformed::Field("zero"));
        }
        let committed_seq = Seq(input.u64()?);
        let digest = if kind == EntryKind::Final { input.array()? } else { [0; 16] };
        let crcs = input.u32s()?;
        if u64::from(offset) + u64::from(length) > u64::from(CHUNK_SIZE) || length > PAYLOAD_LEN_MAX {
            return Err(Malformed::Field("length"));
        }
        if u64::from(op_off) + u64::from(op_len) > u64::from(CHUNK_SIZE) || op_len > APPEND_LEN_MAX {
            return Err(Malformed::Field("op_len"));
        }
        if part >= parts {
            return Err(Malformed::Field("parts"));
        }
        if seq.0 == 0 {
            return Err(Malformed::Field("seq"));
        }
        if kind.is_mutation() && (offset < op_off || offset - op_off + length > op_len) {
            return Err(Malformed::Field("offset"));
        }
        let payload_len = if kind.has_payload() { length } else { 0 };
        if crcs.len() != block_count(payload_len as usize) {
            return Err(Malformed::Field("crcs"));
        }
        Ok(Self {
            chunk,
            epoch,
            kind,
            seq,
            id,
            first_unacked,
            op_off,
            op_len,
            offset,
            length,
            part,
            parts,
            committed_seq,
            digest,
            crcs,
        })
    }

    fn payload_len(&self) -> u32 {
        if self.kind.has_payload() { self.length } else { 0 }
    }
}

macro_rules! chain_note {
    ($(#[$doc:meta])* $name:ident, $tag:ident, $(#[$field_doc:meta])* $field:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            /// Which chunk.
            pub chunk: ChunkHandle,
            /// The chain it belongs to.
            pub epoch: Epoch,
            $(#[$field_doc])*
            pub $field: Seq,
        }

        impl Body for $name {
            const TAG: u16 = tag::$tag;

            fn encode(&self) -> Vec<u8> {
                let mut out = Writer::with_capacity(24);
                out.u64(self.chunk.0);
                out.u32(self.epoch.0);
                out.u32(0);
                out.u64(self.$field.0);
                out.finish()
            }

            fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
                let mut input = Reader::new(bytes);
                let chunk = ChunkHandle(input.u64()?);
                let epoch = Epoch(input.u32()?);
                if input.u32()? != 0 {
                    return Err(Malformed::Field("zero"));
                }
                let $field = Seq(input.u64()?);
                input.end()?;
                Ok(Self { chunk, epoch, $field })
            }
        }
    };
}

chain_note!(
    /// Member → predecessor: everything up to here is durable on me and on all behind me.
    Up, UP,
    /// Cumulative.
    durable_seq
);
chain_note!(
    /// Member → successor: everything up to here is durable on the whole chain.
    Commit, COMMIT,
    /// Cumulative.
    committed_seq
);

/// Why a member did not take an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum NakReason {
    /// Entries before it are missing: resend from `next_seq`.
    Gap = 1,
    /// The epoch is over, or this replica restarted within it.
    Fenced = 2,
    /// The disk failed, is full, or the digest of a FINAL differs.
    Disk = 3,
}

/// Member → predecessor: an entry was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nak {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The chain it belongs to.
    pub epoch: Epoch,
    /// Why.
    pub reason: NakReason,
    /// The entry this member waits for.
    pub next_seq: Seq,
}

impl Body for Nak {
    const TAG: u16 = tag::NAK;

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(24);
        out.u64(self.chunk.0);
        out.u32(self.epoch.0);
        out.u32(self.reason as u32);
        out.u64(self.next_seq.0);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let chunk = ChunkHandle(input.u64()?);
        let epoch = Epoch(input.u32()?);
        let reason = match input.u32()? {
            1 => NakReason::Gap,
            2 => NakReason::Fenced,
            3 => NakReason::Disk,
            _ => return Err(Malformed::Field("reason")),
        };
        let next_seq = Seq(input.u64()?);
        input.end()?;
        Ok(Self { chunk, epoch, reason, next_seq })
    }
}
