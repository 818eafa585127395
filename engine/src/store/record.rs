//! Journal records: the header they share and what each type says.
//!
//! ```text
//!  0     4     8    16        24       28       32   36   37   38   40            48     56    60    64
//!  +-----+-----+----+---------+--------+--------+----+----+----+----+-------------+------+-----+-----+
//!  |HREC | crc |lsn |boot_gen |prev_crc|body_len|span|type|flag| 0  |durable_upto |chunk |slot |epoch| body
//!  +-----+-----+----+---------+--------+--------+----+----+----+----+-------------+------+-----+-----+
//! ```
//!
//! `crc` covers the disk's uuid and then bytes 8 .. 64 + `body_len`: with the uuid in front, bytes
//! that a client stores can never pose as records.

use std::borrow::Cow;

use wire::layout::{Reader, Writer};
use wire::message::Malformed;
use wire::{ChunkHandle, DedupEntry, Epoch, InodeId, OpId, ServerId, StreamId, Term};

use super::header::{Hdr, put_members, take_members};
use super::layout::{BLOCK, CHUNK_CAPACITY, DEDUP_MAX, MEMBERS_MAX, PAGE, PART_MAX};
use super::page::{Page, put_dedup, take_dedup};

/// Encoded size of [`Head`].
pub(crate) const HEAD_LEN: usize = 64;

/// Encoded size of [`Op`].
pub(crate) const OP_LEN: usize = 64;

/// Largest body: an OVERWRITE of 1 MiB that is not aligned touches 257 blocks.
pub(crate) const BODY_LEN_MAX: u32 = 1_054_808;

/// Streams that one FORGET drops.
pub(crate) const FORGET_MAX: usize = 256;

/// Magic of a record.
pub(crate) const MAGIC: [u8; 4] = *b"HREC";

/// Slot number of a record that is about no slot.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// Held back until SEAL.
pub(crate) const FLAG_FILL: u8 = 1;

/// First record of its batch.
pub(crate) const FLAG_FIRST: u8 = 2;

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// As stored; computed when the record is closed.
    pub(crate) crc: u32,
    /// One more than the record before.
    pub(crate) lsn: u64,
    pub(crate) boot_gen: u64,
    /// `crc` of the record before.
    pub(crate) prev_crc: u32,
    pub(crate) body_len: u32,
    /// Bytes to the next record.
    pub(crate) span: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// Everything up to here was flushed when this record was closed.
    pub(crate) durable_upto: u64,
    pub(crate) chunk: ChunkHandle,
    pub(crate) slot: u32,
    pub(crate) epoch: Epoch,
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD_LEN] {
        let mut out = Writer::with_capacity(HEAD_LEN);
        out.bytes(&MAGIC);
        out.u32(self.crc);
        out.u64(self.lsn);
        out.u64(self.boot_gen);
        out.u32(self.prev_crc);
        out.u32(self.body_len);
        out.u32(self.span);
        out.u8(self.kind);
        out.u8(self.flags);
        out.u16(0);
        out.u64(self.durable_upto);
        out.u64(self.chunk.0);
        out.u32(self.slot);
        out.u32(self.epoch.0);
        let bytes = out.finish();
        let mut head = [0; HEAD_LEN];
        head.copy_from_slice(&bytes);
        head
    }

    /// Reads the fields and bounds the lengths; the checksum is the caller's to compare.
    pub(crate) fn decode(bytes: &[u8; HEAD_LEN]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        if input.array()? != MAGIC {
            return Err(Malformed::Field("magic"));
        }
        let crc = input.u32()?;
        let lsn = input.u64()?;
        let boot_gen = input.u64()?;
        let prev_crc = input.u32()?;
        let body_len = input.u32()?;
        let span = input.u32()?;
        let kind = input.u8()?;
        let flags = input.u8()?;
        let zero = input.u16()?;
        let head = Self {
            crc,
            lsn,
            boot_gen,
            prev_crc,
            body_len,
            span,
            kind,
            flags,
            durable_upto: input.u64()?,
            chunk: ChunkHandle(input.u64()?),
            slot: input.u32()?,
            epoch: Epoch(input.u32()?),
        };
        let least = u32::try_from(HEAD_LEN).unwrap_or(0) + body_len.min(BODY_LEN_MAX);
        let longest = least.next_multiple_of(BLOCK) + BLOCK;
        if body_len > BODY_LEN_MAX || !span.is_multiple_of(64) || span < least || span > longest {
            return Err(Malformed::Field("body_len or span"));
        }
        if zero != 0 || flags & !(FLAG_FILL | FLAG_FIRST) != 0 {
            return Err(Malformed::Field("reserved"));
        }
        Ok(head)
    }
}

/// The checksum of an encoded record: `record` is header and body.
pub(crate) fn checksum(disk_uuid: &[u8; 16], record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(disk_uuid), record.get(8..).unwrap_or_default())
}

/// What operations start with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) id: OpId,
    pub(crate) first_unacked: u64,
    /// Entry within (chunk, epoch), from 1.
    pub(crate) seq: u64,
    /// Known when the record was made.
    pub(crate) committed_seq: u64,
    pub(crate) part: u16,
    pub(crate) parts: u16,
    /// Chunk offset and length of the whole operation.
    pub(crate) off: u32,
    pub(crate) len: u32,
}

impl Op {
    fn put(&self, out: &mut Writer) {
        out.bytes(&self.id.stream.0);
        out.u64(self.id.op);
        out.u64(self.first_unacked);
        out.u64(self.seq);
        out.u64(self.committed_seq);
        out.u16(self.part);
        out.u16(self.parts);
        out.u32(self.off);
        out.u32(self.len);
        out.u32(0);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let id = OpId { stream: StreamId(input.array()?), op: input.u64()? };
        let op = Self {
            id,
            first_unacked: input.u64()?,
            seq: input.u64()?,
            committed_seq: input.u64()?,
            part: input.u16()?,
            parts: input.u16()?,
            off: input.u32()?,
            len: input.u32()?,
        };
        zeros::<4>(input)?;
        if op.part >= op.parts {
            return Err(Malformed::Field("part"));
        }
        Ok(op)
    }
}

/// Bytes at the end of the chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Append<'a> {
    pub(crate) op: Op,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    /// First block that this completes; its checksums are `crcs`.
    pub(crate) first_block: u32,
    pub(crate) crcs: Cow<'a, [u32]>,
    /// The whole new partial block.
    pub(crate) tail: &'a [u8],
}

/// Whole new images of blocks below the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Images<'a> {
    /// Block and checksum.
    pub(crate) blocks: Vec<(u32, u32)>,
    /// One page each.
    pub(crate) images: &'a [u8],
}

/// What is known of a chunk when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Create<'a> {
    pub(crate) term: Term,
    pub(crate) prev: ChunkHandle,
    pub(crate) file: InodeId,
    pub(crate) my_position: u8,
    pub(crate) members: Cow<'a, [ServerId]>,
    /// The table of the chunk before.
    pub(crate) dedup: Cow<'a, [DedupEntry]>,
}

/// The content under the promised epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seal<'a> {
    pub(crate) term: Term,
    pub(crate) len: u32,
    pub(crate) last_seq: u64,
    pub(crate) digest: [u8; 16],
    /// The whole table that holds from now on.
    pub(crate) dedup: Cow<'a, [DedupEntry]>,
}

/// A new chain for a sealed chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reopen {
    pub(crate) term: Term,
    pub(crate) len: u32,
    pub(crate) digest: [u8; 16],
    pub(crate) my_position: u8,
    pub(crate) members: Vec<ServerId>,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    Append(Append<'a>),
    Overwrite {
        op: Op,
        offset: u32,
        length: u32,
        images: Images<'a>,
    },
    Repair(Images<'a>),
    Forget {
        op: Op,
        streams: Vec<StreamId>,
    },
    Create(Create<'a>),
    Promise {
        promised: Epoch,
        term: Term,
    },
    Seal(Seal<'a>),
    Sealed {
        term: Term,
        len: u32,
        digest: [u8; 16],
    },
    Reopen(Reopen),
    Condemn {
        term: Term,
        reason: u8,
        authority: u64,
        now: u64,
    },
    Restore {
        term: Term,
        authority: u64,
    },
    Free {
        term: Term,
        authority: u64,
    },
    /// The slot holds a finished copy from now on.
    Install(Box<Hdr>),
    Final {
        op: Op,
        len: u32,
        digest: [u8; 16],
    },
    Mark,
}

impl<'a> Body<'a> {
    /// Number of the type.
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Append(_) => 1,
            Self::Overwrite { .. } => 2,
            Self::Repair(_) => 3,
            Self::Forget { .. } => 4,
            Self::Create(_) => 5,
            Self::Promise { .. } => 6,
            Self::Seal(_) => 7,
            Self::Sealed { .. } => 8,
            Self::Reopen(_) => 9,
            Self::Condemn { .. } => 10,
            Self::Restore { .. } => 11,
            Self::Free { .. } => 12,
            Self::Install(_) => 13,
            Self::Final { .. } => 14,
            Self::Mark => 15,
        }
    }

    /// The body's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(self.len_bound());
        match self {
            Self::Append(append) => append.put(&mut out),
            Self::Overwrite { op, offset, length, images } => {
                op.put(&mut out);
                out.u32(*offset);
                out.u32(*length);
                images.put(&mut out);
            }
            Self::Repair(images) => images.put(&mut out),
            Self::Forget { op, streams } => {
                op.put(&mut out);
                out.u16(count16(streams.len()));
                out.bytes(&[0; 6]);
                streams.iter().for_each(|stream| out.bytes(&stream.0));
            }
            Self::Create(create) => create.put(&mut out),
            Self::Promise { promised, term } => {
                out.u32(promised.0);
                out.u32(term.0);
            }
            Self::Seal(seal) => seal.put(&mut out),
            Self::Sealed { term, len, digest } => {
                out.u32(term.0);
                out.u32(*len);
                out.bytes(digest);
            }
            Self::Reopen(reopen) => reopen.put(&mut out),
            Self::Condemn { term, reason, authority, now } => {
                out.u32(term.0);
                out.u8(*reason);
                out.bytes(&[0; 3]);
                out.u64(*authority);
                out.u64(*now);
            }
            Self::Restore { term, authority } | Self::Free { term, authority } => {
                out.u32(term.0);
                out.u32(0);
                out.u64(*authority);
            }
            Self::Install(hdr) => out.bytes(hdr.encode().as_slice()),
            Self::Final { op, len, digest } => {
                op.put(&mut out);
                out.u32(*len);
                out.u32(0);
                out.bytes(digest);
            }
            Self::Mark => {}
        }
        let bytes = out.finish();
        assert!(bytes.len() <= BODY_LEN_MAX as usize, "a record fits its bound");
        bytes
    }

    /// At least as many bytes as it encodes to.
    pub(crate) fn len_bound(&self) -> usize {
        match self {
            Self::Append(append) => OP_LEN + 16 + append.crcs.len() * 4 + append.tail.len(),
            Self::Overwrite { images, .. } | Self::Repair(images) => OP_LEN + 16 + images.blocks.len() * (8 + PAGE),
            Self::Create(Create { dedup, .. }) | Self::Seal(Seal { dedup, .. }) => 64 + dedup.len() * 40,
            Self::Install(_) => PAGE,
            Self::Forget { streams, .. } => OP_LEN + 8 + streams.len() * 16,
            _ => 96,
        }
    }

    /// Reads a body of this type; every length is bounded before it is believed.
    pub(crate) fn decode(kind: u8, bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let body = match kind {
            1 => Self::Append(Append::take(&mut input)?),
            2 => Self::Overwrite {
                op: Op::take(&mut input)?,
                offset: input.u32()?,
                length: input.u32()?,
                images: Images::take(&mut input, 257)?,
            },
            3 => Self::Repair(Images::take(&mut input, 256)?),
            4 => take_forget(&mut input)?,
            5 => Self::Create(Create::take(&mut input)?),
            6 => Self::Promise { promised: Epoch(input.u32()?), term: Term(input.u32()?) },
            7 => Self::Seal(Seal::take(&mut input)?),
            8 => Self::Sealed { term: Term(input.u32()?), len: input.u32()?, digest: input.array()? },
            9 => Self::Reopen(Reopen::take(&mut input)?),
            10 => {
                let (term, reason) = (Term(input.u32()?), input.u8()?);
                zeros::<3>(&mut input)?;
                Self::Condemn { term, reason, authority: input.u64()?, now: input.u64()? }
            }
            11 | 12 => {
                let term = Term(input.u32()?);
                zeros::<4>(&mut input)?;
                let authority = input.u64()?;
                if kind == 11 { Self::Restore { term, authority } } else { Self::Free { term, authority } }
            }
            13 => {
                let page: Page = input.array()?;
                Self::Install(Box::new(Hdr::decode(&page).map_err(|_| Malformed::Field("installed header"))?))
            }
            14 => {
                let (op, len) = (Op::take(&mut input)?, input.u32()?);
                zeros::<4>(&mut input)?;
                Self::Final { op, len, digest: input.array()? }
            }
            15 => Self::Mark,
            _ => return Err(Malformed::Field("type")),
        };
        input.end()?;
        Ok(body)
    }
}

impl<'a> Append<'a> {
    fn put(&self, out: &mut Writer) {
        self.op.put(out);
        out.u32(self.offset);
        out.u32(self.length);
        out.u16(count16(self.crcs.len()));
        out.u16(count16(self.tail.len()));
        out.u32(self.first_block);
        out.u32s(&self.crcs);
        out.bytes(self.tail);
    }

    fn take(input: &mut Reader<'a>) -> Result<Self, Malformed> {
        let op = Op::take(input)?;
        let (offset, length) = (input.u32()?, input.u32()?);
        let (n, tail_len) = (u32::from(input.u16()?), u32::from(input.u16()?));
        let first_block = input.u32()?;
        if length == 0 || length > PART_MAX || offset > CHUNK_CAPACITY - length {
            return Err(Malformed::Field("range"));
        }
        let end = offset + length;
        let blocks = end / BLOCK - offset / BLOCK;
        if first_block != offset / BLOCK || n != blocks || tail_len != end % BLOCK {
            return Err(Malformed::Field("blocks"));
        }
        let crcs = (0..n).map(|_| input.u32()).collect::<Result<Vec<_>, _>>()?;
        let tail = input.rest();
        if tail.len() != tail_len as usize {
            return Err(Malformed::Field("tail_len"));
        }
        Ok(Self { op, offset, length, first_block, crcs: Cow::Owned(crcs), tail })
    }
}

impl<'a> Images<'a> {
    fn put(&self, out: &mut Writer) {
        out.u16(count16(self.blocks.len()));
        out.bytes(&[0; 6]);
        for (block, crc) in &self.blocks {
            out.u32(*block);
            out.u32(*crc);
        }
        out.bytes(self.images);
    }

    fn take(input: &mut Reader<'a>, most: usize) -> Result<Self, Malformed> {
        let n = usize::from(input.u16()?);
        zeros::<6>(input)?;
        if n == 0 || n > most {
            return Err(Malformed::Field("blocks"));
        }
        let blocks = (0..n).map(|_| Ok((input.u32()?, input.u32()?))).collect::<Result<Vec<_>, Malformed>>()?;
        let images = input.rest();
        let in_range = blocks.iter().all(|(block, _)| *block < CHUNK_CAPACITY / BLOCK);
        if !in_range || images.len() != n * PAGE {
            return Err(Malformed::Field("images"));
        }
        Ok(Self { blocks, images })
    }
}

impl Create<'_> {
    fn put(&self, out: &mut Writer) {
        out.u32(self.term.0);
        out.u32(0); // flags: none defined
        out.u64(self.prev.0);
        out.u64(self.file.0);
        out.u8(u8::try_from(self.members.len()).unwrap_or(u8::MAX));
        out.u8(self.my_position);
        out.u16(count16(self.dedup.len()));
        out.u32(0);
        put_members(out, &self.members);
        self.dedup.iter().for_each(|entry| put_dedup(out, entry));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let term = Term(input.u32()?);
        zeros::<4>(input)?;
        let (prev, file) = (ChunkHandle(input.u64()?), InodeId(input.u64()?));
        let (count, my_position, n) = (input.u8()?, input.u8()?, input.u16()?);
        zeros::<4>(input)?;
        let members = take_members(input, count)?;
        let dedup = take_table(input, n)?;
        Ok(Self { term, prev, file, my_position, members: Cow::Owned(members), dedup: Cow::Owned(dedup) })
    }
}

impl Seal<'_> {
    fn put(&self, out: &mut Writer) {
        out.u32(self.term.0);
        out.u32(self.len);
        out.u64(self.last_seq);
        out.bytes(&self.digest);
        out.u16(count16(self.dedup.len()));
        out.bytes(&[0; 6]);
        self.dedup.iter().for_each(|entry| put_dedup(out, entry));
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (term, len, last_seq) = (Term(input.u32()?), input.u32()?, input.u64()?);
        let digest = input.array()?;
        let n = input.u16()?;
        zeros::<6>(input)?;
        if len > CHUNK_CAPACITY {
            return Err(Malformed::Field("len"));
        }
        Ok(Self { term, len, last_seq, digest, dedup: Cow::Owned(take_table(input, n)?) })
    }
}

impl Reopen {
    fn put(&self, out: &mut Writer) {
        out.u32(self.term.0);
        out.u32(self.len);
        out.bytes(&self.digest);
        out.u8(u8::try_from(self.members.len()).unwrap_or(u8::MAX));
        out.u8(self.my_position);
        out.bytes(&[0; 6]);
        put_members(out, &self.members);
    }

    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (term, len, digest) = (Term(input.u32()?), input.u32()?, input.array()?);
        let (count, my_position) = (input.u8()?, input.u8()?);
        zeros::<6>(input)?;
        Ok(Self { term, len, digest, my_position, members: take_members(input, count)? })
    }
}

fn take_forget<'a>(input: &mut Reader<'a>) -> Result<Body<'a>, Malformed> {
    let op = Op::take(input)?;
    let n = input.u16()?;
    zeros::<6>(input)?;
    if !(1..=FORGET_MAX).contains(&usize::from(n)) {
        return Err(Malformed::Field("streams"));
    }
    let streams = (0..n).map(|_| Ok(StreamId(input.array()?))).collect::<Result<_, Malformed>>()?;
    Ok(Body::Forget { op, streams })
}

fn take_table(input: &mut Reader<'_>, n: u16) -> Result<Vec<DedupEntry>, Malformed> {
    if usize::from(n) > DEDUP_MAX {
        return Err(Malformed::Field("dedup entries"));
    }
    (0..n).map(|_| take_dedup(input)).collect()
}

fn zeros<const N: usize>(input: &mut Reader<'_>) -> Result<(), Malformed> {
    if input.array::<N>()? == [0; N] { Ok(()) } else { Err(Malformed::Field("reserved")) }
}

/// Counts in records are 16 bits wide; what is counted is bounded far below.
fn count16(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

const _: () = assert!(BODY_LEN_MAX as usize == OP_LEN + 16 + 257 * (8 + PAGE));
const _: () = assert!((HEAD_LEN + BODY_LEN_MAX as usize).next_multiple_of(PAGE) == 1_056_768);
const _: () = assert!(64 + 40 * DEDUP_MAX == 16_064 && 40 + 40 * DEDUP_MAX == 16_040);
const _: () = assert!(32 + 4 * MEMBERS_MAX == 64);
const _: () = assert!(OP_LEN + 16 + 256 * 4 + 4095 == 5_199);

#[cfg(test)]
#[path = "record_tests.rs"]
pub(crate) mod tests;
