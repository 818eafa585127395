//! Properties of every message: any value comes back as it was, and whatever arrives is refused or is
//! exactly the message it encodes to. Nothing that arrives can make a decoder panic or allocate what
//! a length field says.
#![forbid(unsafe_code)]

#[allow(dead_code, reason = "shared with other tests, which use other parts of it")]
mod common;

use std::cell::RefCell;
use std::fmt::Debug;

use common::{random, receive};
use proptest::prelude::*;
use wire::append::{Append, Appended, Close, LAST};
use wire::checksum::{block_count, block_crcs, matches};
use wire::error::{FAULT_TEXT_MAX, Fault, Kind, Reason};
use wire::fetch::Fetch;
use wire::forward::{Commit, EntryKind, Forward, Nak, NakReason, Up};
use wire::frame::{self, Header};
use wire::limits::{APPEND_LEN_MAX, BLOCK_SIZE, CHUNK_SIZE, CONTROL_LEN_MAX, PAYLOAD_LEN_MAX};
use wire::message::tag;
use wire::read::{Data, Read, Version, VersionOk};
use wire::write::Write;
use wire::{Body, ChunkHandle, Epoch, Message, NamePath, OpId, Seq, StreamId};

/// One use of a macro per control message.
macro_rules! for_every_control_message {
    ($check:ident($($argument:expr),*)) => {{
        $check::<wire::hello::Hello>($($argument),*)?;
        $check::<wire::hello::HelloOk>($($argument),*)?;
        $check::<wire::handshake::Challenge>($($argument),*)?;
        $check::<wire::handshake::Proof>($($argument),*)?;
        $check::<wire::handshake::Welcome>($($argument),*)?;
        $check::<wire::message::Done>($($argument),*)?;
        $check::<wire::chain::Create>($($argument),*)?;
        $check::<wire::chain::Reopen>($($argument),*)?;
        $check::<wire::chain::Table>($($argument),*)?;
        $check::<wire::chain::TableOk>($($argument),*)?;
        $check::<wire::chain::Condemn>($($argument),*)?;
        $check::<wire::chain::Free>($($argument),*)?;
        $check::<wire::seal::Prepare>($($argument),*)?;
        $check::<wire::seal::PrepareOk>($($argument),*)?;
        $check::<wire::seal::Seal>($($argument),*)?;
        $check::<wire::seal::SealOk>($($argument),*)?;
        $check::<wire::seal::Confirm>($($argument),*)?;
        $check::<wire::seal::Digest>($($argument),*)?;
        $check::<wire::seal::DigestOk>($($argument),*)?;
        $check::<wire::report::Report>($($argument),*)?;
        $check::<wire::report::Finished>($($argument),*)?;
        $check::<wire::heartbeat::Register>($($argument),*)?;
        $check::<wire::heartbeat::Registered>($($argument),*)?;
        $check::<wire::heartbeat::Heartbeat>($($argument),*)?;
        $check::<wire::heartbeat::HeartbeatOk>($($argument),*)?;
        $check::<wire::heartbeat::Cluster>($($argument),*)?;
        $check::<wire::heartbeat::ClusterOk>($($argument),*)?;
        $check::<wire::locate::Locate>($($argument),*)?;
        $check::<wire::locate::LocateChunk>($($argument),*)?;
        $check::<wire::locate::Locations>($($argument),*)?;
        $check::<wire::namespace::Mkdir>($($argument),*)?;
        $check::<wire::namespace::CreateFile>($($argument),*)?;
        $check::<wire::namespace::Delete>($($argument),*)?;
        $check::<wire::namespace::Rename>($($argument),*)?;
        $check::<wire::namespace::Undelete>($($argument),*)?;
        $check::<wire::namespace::Stat>($($argument),*)?;
        $check::<wire::namespace::List>($($argument),*)?;
        $check::<wire::namespace::Trash>($($argument),*)?;
        $check::<wire::namespace::Attr>($($argument),*)?;
        $check::<wire::namespace::Listing>($($argument),*)?;
        $check::<wire::upload::BeginUpload>($($argument),*)?;
        $check::<wire::upload::Upload>($($argument),*)?;
        $check::<wire::upload::Publish>($($argument),*)?;
        $check::<wire::upload::Splice>($($argument),*)?;
        $check::<wire::upload::AbortUpload>($($argument),*)?;
        $check::<wire::clone::CloneChunk>($($argument),*)?;
        $check::<wire::clone::Cloned>($($argument),*)?;
        $check::<wire::clone::Crcs>($($argument),*)?;
        $check::<wire::clone::CrcsOk>($($argument),*)?;
        $check::<wire::repairs::Repairs>($($argument),*)?;
        $check::<wire::repairs::RepairsOk>($($argument),*)?;
        $check::<wire::repairs::TuneRepairs>($($argument),*)?;
        $check::<wire::repairs::Drain>($($argument),*)?;
    }};
}

#[test]
fn no_control_message_is_left_out() {
    let control = RefCell::new(Vec::new());
    let collect = || -> Result<(), TestCaseError> {
        for_every_control_message!(collect_tag(&control));
        Ok(())
    };
    collect().unwrap();
    let mut listed = control.into_inner();
    listed.extend(LAYOUTS);
    listed.sort_unstable();
    assert_eq!(listed, tag::ALL.iter().map(|(number, _)| *number).collect::<Vec<_>>());
}

fn collect_tag<M: Message>(tags: &RefCell<Vec<u16>>) -> Result<(), TestCaseError> {
    tags.borrow_mut().push(<M as Message>::TAG);
    Ok(())
}

/// Messages with a layout of their own, each named in the properties below.
const LAYOUTS: [u16; 14] = [
    tag::FAULT,
    tag::APPEND,
    tag::APPEND_OK,
    tag::READ,
    tag::DATA,
    tag::FWD,
    tag::UP,
    tag::NAK,
    tag::COMMIT,
    tag::VERSION,
    tag::VERSION_OK,
    tag::CLOSE,
    tag::FETCH,
    tag::WRITE,
];

proptest! {
    #[test]
    fn any_control_message_comes_back_as_it_was(seed: u64) {
        for_every_control_message!(random_value_comes_back(seed));
    }

    #[test]
    fn any_append_comes_back_as_it_was(append in appends()) {
        comes_back(&append)?;
    }

    #[test]
    fn any_positional_write_comes_back_as_it_was(append in appends(), offset in 0..=CHUNK_SIZE - PAYLOAD_LEN_MAX) {
        let len = append.op_len.clamp(1, PAYLOAD_LEN_MAX);
        let crcs = (0..).take(block_count(len as usize)).collect();
        let Append { chunk, epoch, id, first_unacked, .. } = append;
        comes_back(&Write { chunk, epoch, offset, id, first_unacked, len, crcs })?;
    }

    #[test]
    fn any_entry_of_a_chain_comes_back_as_it_was(entry in entries()) {
        comes_back(&entry)?;
    }

    #[test]
    fn any_data_comes_back_as_it_was(data in data()) {
        comes_back(&data)?;
    }

    #[test]
    fn any_fault_comes_back_as_it_was(
        kind in prop::sample::select(&Kind::ALL[..]),
        reason in prop::sample::select(&Reason::ALL[..]),
        detail: u64,
        text in "\\PC{0,200}",
    ) {
        comes_back(&Fault { kind, reason, detail, text })?;
    }

    #[test]
    fn a_long_text_of_a_fault_is_cut_between_characters(text in "[aé☃𝄞]{0,2000}") {
        let back: Fault = receive(&frame::head(&Fault::new(Kind::Invalid, &*text), 1, 0, 0)).unwrap();
        prop_assert!(text.starts_with(&back.text));
        prop_assert!(back.text.len() == text.len() || back.text.len() > FAULT_TEXT_MAX - 4);
    }

    #[test]
    fn any_short_layout_comes_back_as_it_was(
        chunk in any::<u64>().prop_map(ChunkHandle),
        epoch in any::<u32>().prop_map(Epoch),
        seq in any::<u64>().prop_map(Seq),
        stream in any::<[u8; 16]>().prop_map(StreamId),
        (offset, len) in ranges(PAYLOAD_LEN_MAX - BLOCK_SIZE),
        reason in prop::sample::select(&[NakReason::Gap, NakReason::Fenced, NakReason::Disk][..]),
    ) {
        comes_back(&Appended { chunk, offset, len, epoch, committed_seq: seq })?;
        comes_back(&Close { chunk, epoch, stream })?;
        comes_back(&Up { chunk, epoch, durable_seq: seq })?;
        comes_back(&Commit { chunk, epoch, committed_seq: seq })?;
        comes_back(&Nak { chunk, epoch, reason, next_seq: seq })?;
        comes_back(&Read { chunk, epoch, offset, len, min_seq: seq })?;
        comes_back(&Fetch { chunk, epoch, offset: offset / BLOCK_SIZE * BLOCK_SIZE, len })?;
        comes_back(&Version { chunk, epoch })?;
        comes_back(&VersionOk { committed_seq: seq, committed_len: offset })?;
    }

    #[test]
    fn a_damaged_control_message_is_refused_or_is_another_one(seed: u64, damage in damages()) {
        for_every_control_message!(random_value_survives(seed, &damage));
    }

    #[test]
    fn a_damaged_layout_is_refused_or_is_another_one(
        append in appends(),
        entry in entries(),
        data in data(),
        damage in damages(),
    ) {
        survives(&append, &damage)?;
        survives(&entry, &damage)?;
        survives(&data, &damage)?;
        survives(&Fault::new(Kind::Invalid, "no"), &damage)?;
    }

    #[test]
    fn noise_is_refused_or_is_exactly_one_message(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        for_every_control_message!(is_refused_or_canonical(&noise));
        is_refused_or_canonical::<Append>(&noise)?;
        is_refused_or_canonical::<Appended>(&noise)?;
        is_refused_or_canonical::<Close>(&noise)?;
        is_refused_or_canonical::<Forward>(&noise)?;
        is_refused_or_canonical::<Up>(&noise)?;
        is_refused_or_canonical::<Commit>(&noise)?;
        is_refused_or_canonical::<Nak>(&noise)?;
        is_refused_or_canonical::<Read>(&noise)?;
        is_refused_or_canonical::<Data>(&noise)?;
        is_refused_or_canonical::<Fetch>(&noise)?;
        is_refused_or_canonical::<Version>(&noise)?;
        is_refused_or_canonical::<VersionOk>(&noise)?;
        is_refused_or_canonical::<Fault>(&noise)?;
    }

    #[test]
    fn any_header_comes_back_as_it_was(
        fields_crc: u32, fields_len in 0..=CONTROL_LEN_MAX, tag: u16, deadline_ms: u32, request_id: u64,
    ) {
        let header = Header { fields_crc, fields_len, payload_len: 0, tag, deadline_ms, request_id };
        prop_assert_eq!(Header::decode_exact(&header.encode()), Ok(header));
    }

    #[test]
    fn a_payload_with_any_bit_flipped_no_longer_matches(
        mut payload in prop::collection::vec(any::<u8>(), 1..20_000), at: prop::sample::Index, bit in 0..8_u8,
    ) {
        let crcs = block_crcs(&payload);
        prop_assert!(matches(&payload, &crcs));
        let at = at.index(payload.len());
        payload[at] ^= 1 << bit;
        prop_assert!(!matches(&payload, &crcs));
    }

    #[test]
    fn a_path_in_normal_form_stays_as_it_is(raw in "([a-c.é ]{0,3}/{0,2}){0,8}") {
        if let Ok(path) = NamePath::parse(&raw) {
            prop_assert_eq!(NamePath::parse(path.as_str()), Ok(path.clone()));
            prop_assert!(path.as_str().starts_with('/'));
            prop_assert_eq!(path.is_root(), path.segments().next().is_none());
        }
    }

    #[test]
    fn a_path_never_climbs(raw in "\\PC*") {
        if let Ok(path) = NamePath::parse(&raw) {
            prop_assert!(path.segments().all(|segment| segment != ".." && segment != "."));
        }
    }
}

/// What happens to a message on its way.
#[derive(Clone, Debug)]
enum Damage {
    /// Eight bytes replaced: where a length stands, a hostile one.
    Length(prop::sample::Index, u64),
    /// One byte replaced.
    Byte(prop::sample::Index, u8),
    /// Cut short.
    Cut(prop::sample::Index),
    /// Continued.
    More(Vec<u8>),
}

fn damages() -> impl Strategy<Value = Damage> {
    let length = prop_oneof![Just(u64::MAX), Just(u64::from(u32::MAX)), Just(1 << 20), 0..1000_u64, any::<u64>()];
    prop_oneof![
        4 => (any::<prop::sample::Index>(), length).prop_map(|(at, length)| Damage::Length(at, length)),
        4 => any::<(prop::sample::Index, u8)>().prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => any::<prop::sample::Index>().prop_map(Damage::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..20).prop_map(Damage::More),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(at, length) if bytes.len() >= 8 => {
                let at = at.index(bytes.len() - 7);
                bytes[at..at + 8].copy_from_slice(&length.to_le_bytes());
            }
            Self::Byte(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Self::Cut(at) if !bytes.is_empty() => bytes.truncate(at.index(bytes.len())),
            Self::More(more) => bytes.extend_from_slice(more),
            _ => {}
        }
    }
}

fn random_value_comes_back<M: Message + PartialEq + Debug>(seed: u64) -> Result<(), TestCaseError> {
    comes_back(&random::value::<M>(seed))
}

fn random_value_survives<M: Message + PartialEq + Debug>(seed: u64, damage: &Damage) -> Result<(), TestCaseError> {
    survives(&random::value::<M>(seed), damage)
}

fn comes_back<B: Body + PartialEq + Debug>(value: &B) -> Result<(), TestCaseError> {
    let framed = frame::head(value, 1, 0, value.payload_len() as usize);
    let back = receive::<B>(&framed);
    prop_assert_eq!(back.as_ref(), Ok(value));
    Ok(())
}

fn survives<B: Body + PartialEq + Debug>(value: &B, damage: &Damage) -> Result<(), TestCaseError> {
    let mut bytes = value.encode();
    damage.apply(&mut bytes);
    is_refused_or_canonical::<B>(&bytes)
}

fn is_refused_or_canonical<B: Body>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = B::decode(bytes) {
        prop_assert_eq!(value.encode(), bytes, "message {}", B::TAG);
    }
    Ok(())
}

/// A range inside a chunk of 1 to `len_max` bytes.
fn ranges(len_max: u32) -> impl Strategy<Value = (u32, u32)> {
    (1..=len_max).prop_flat_map(|len| (0..=CHUNK_SIZE - len, Just(len)))
}

fn checksums(len: u32) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(any::<u32>(), block_count(len as usize))
}

fn ids() -> impl Strategy<Value = OpId> {
    (any::<[u8; 16]>(), 1..u64::MAX).prop_map(|(stream, op)| OpId { stream: StreamId(stream), op })
}

fn appends() -> impl Strategy<Value = Append> {
    let parts_max = u16::try_from(APPEND_LEN_MAX / PAYLOAD_LEN_MAX).unwrap_or(u16::MAX);
    let part = (1..=parts_max, 1..=PAYLOAD_LEN_MAX).prop_flat_map(|(parts, last_len)| {
        let op_len = u32::from(parts - 1) * PAYLOAD_LEN_MAX + last_len;
        (Just(op_len), 0..parts, Just(parts))
    });
    let part = part.prop_flat_map(|(op_len, part, parts)| {
        let len = (op_len - u32::from(part) * PAYLOAD_LEN_MAX).min(PAYLOAD_LEN_MAX);
        (Just(op_len), Just(part), Just(parts), checksums(len))
    });
    (any::<(u64, u32)>(), prop::sample::select(&[0, LAST][..]), ids(), any::<prop::sample::Index>(), part).prop_map(
        |((chunk, epoch), flags, id, first, (op_len, part, parts, crcs))| Append {
            chunk: ChunkHandle(chunk),
            epoch: Epoch(epoch),
            flags,
            id,
            first_unacked: 1 + first.index(usize::try_from(id.op.min(1000)).unwrap_or(1)) as u64,
            op_len,
            part,
            parts,
            crcs,
        },
    )
}

fn entries() -> impl Strategy<Value = Forward> {
    let kinds =
        [EntryKind::Append, EntryKind::Overwrite, EntryKind::Zero, EntryKind::Forget, EntryKind::Final].as_slice();
    let shape = (prop::sample::select(kinds), ranges(PAYLOAD_LEN_MAX)).prop_flat_map(|(kind, (offset, length))| {
        let length = if kind == EntryKind::Final { 0 } else { length };
        let carried = if kind == EntryKind::Zero { 0 } else { length };
        let digest = if kind == EntryKind::Final { any::<[u8; 16]>().boxed() } else { Just([0; 16]).boxed() };
        (Just(kind), Just(offset), Just(length), digest, checksums(carried))
    });
    (any::<(u64, u32)>(), 1..u64::MAX, ids(), any::<u64>(), any::<u64>(), shape).prop_map(
        |((chunk, epoch), seq, id, first_unacked, committed, (kind, offset, length, digest, crcs))| Forward {
            chunk: ChunkHandle(chunk),
            epoch: Epoch(epoch),
            kind,
            seq: Seq(seq),
            id,
            first_unacked,
            op_off: offset,
            op_len: length,
            offset,
            length,
            part: 0,
            parts: 1,
            committed_seq: Seq(committed),
            digest,
            crcs,
        },
    )
}

fn data() -> impl Strategy<Value = Data> {
    let shape = ranges(PAYLOAD_LEN_MAX).prop_flat_map(|(offset, len)| {
        (Just(offset / BLOCK_SIZE * BLOCK_SIZE), Just(len), 0..=CHUNK_SIZE, checksums(len))
    });
    (any::<(u64, u32, u64)>(), shape).prop_map(|((chunk, epoch, seq), (offset, len, committed_len, crcs))| Data {
        chunk: ChunkHandle(chunk),
        offset,
        len,
        committed_len,
        epoch: Epoch(epoch),
        committed_seq: Seq(seq),
        crcs,
    })
}
