//! HDR: what a slot holds. All fields lie in the first sector of the page.
//!
//! ```text
//!  64 state, prior, flags | 68 epoch, promised, durable, committed, sealed len | 88 last, committed, suspect seq
//! 112 sealed digest | 128 written_upto, tail_len, tail_crc, child_copy, child_present | 148 dedup_crc[4]
//! 164 crc_page_crc[17] | 232 prev, file, authority, condemned_at | 264 counts, term, members[8]
//! 304 epoch_history[8] | 432 last_overwrite_seq | 440 zero
//! ```

use wire::layout::{Reader, Writer};
use wire::{ChunkHandle, Epoch, InodeId, ServerId};

use super::layout::{BLOCK, CHILD_BITS, CHUNK_CAPACITY, CRC_PAGES, Child, DEDUP_MAX, DEDUP_PAGES, MEMBERS_MAX};
use super::page::{self, Bad, COMMON_LEN, Common, Page, PageKind, Root, SECTOR, bad, rest_is_zero};

/// End of the fields.
pub(crate) const HDR_END: usize = 440;

/// Epochs of which a header remembers where they began.
pub(crate) const HISTORY: usize = 8;

/// State of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SlotState {
    /// Holds nothing.
    #[default]
    Free = 0,
    /// Takes part in its chain. Under an older `boot_gen` it means [`SlotState::Rwr`].
    Open = 1,
    /// Restarted within its epoch.
    Rwr = 2,
    /// Fixed.
    Sealed = 3,
    /// On the way out.
    Condemned = 4,
}

impl SlotState {
    fn from_u8(value: u8) -> Result<Self, Bad> {
        Ok(match value {
            0 => Self::Free,
            1 => Self::Open,
            2 => Self::Rwr,
            3 => Self::Sealed,
            4 => Self::Condemned,
            _ => return Err(bad("slot state")),
        })
    }
}

/// Facts about a replica beside its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u16);

impl Flags {
    /// Re-opened: its length may not change.
    pub(crate) const FIXED: u16 = 1;
    /// Content set under the promised epoch, not confirmed.
    pub(crate) const FILLED: u16 = 2;
    /// Records existed whose data could not be verified.
    pub(crate) const SUSPECT: u16 = 4;
    /// Extents shared with another file: overwriting them needs space.
    pub(crate) const SHARED: u16 = 8;
    /// Does not count in length decisions.
    pub(crate) const DAMAGED: u16 = 16;
    /// FINAL accepted: nothing of this epoch follows.
    pub(crate) const CLOSED: u16 = 32;
    /// A block of the slot stays bad after a repair: it holds no chunk after this one.
    pub(crate) const QUARANTINED: u16 = 64;

    const ALL: u16 = 127;

    pub(crate) fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    pub(crate) fn set(&mut self, flag: u16) {
        self.0 |= flag;
    }

    pub(crate) fn clear(&mut self, flag: u16) {
        self.0 &= !flag;
    }
}

/// Where an epoch began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EpochStart {
    pub(crate) epoch: u32,
    pub(crate) start_len: u32,
    pub(crate) start_seq: u64,
}

/// The header of a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hdr {
    /// `number` is the slot, `lsn` the checkpoint: records up to it are in here.
    pub(crate) common: Common,
    pub(crate) state: SlotState,
    /// State before [`SlotState::Condemned`].
    pub(crate) prior_state: SlotState,
    pub(crate) flags: Flags,
    /// Epoch whose log this is.
    pub(crate) epoch: Epoch,
    /// At least `epoch`.
    pub(crate) promised: Epoch,
    /// Length after the last complete operation.
    pub(crate) durable_len: u32,
    /// Known acknowledged by all members.
    pub(crate) committed_len: u32,
    pub(crate) sealed_len: u32,
    /// Last entry of the last complete operation.
    pub(crate) last_seq: u64,
    pub(crate) committed_seq: u64,
    /// Records up to here existed, their data could not be verified.
    pub(crate) suspect_seq: u64,
    pub(crate) sealed_digest: [u8; 16],
    /// Data bytes below are durably *written* extents; belongs to the slot, not to the chunk.
    pub(crate) written_upto: u32,
    /// Bytes of the partial block in TAIL; zero once it is in place.
    pub(crate) tail_len: u32,
    pub(crate) tail_crc: u32,
    /// Which copy of each child is current; set: B.
    pub(crate) child_copy: u32,
    /// Which children were written for this chunk.
    pub(crate) child_present: u32,
    pub(crate) dedup_crc: [u32; DEDUP_PAGES],
    pub(crate) crc_page_crc: [u32; CRC_PAGES],
    pub(crate) prev: ChunkHandle,
    pub(crate) file: InodeId,
    /// LSN in the master's log that allowed [`SlotState::Condemned`].
    pub(crate) authority: u64,
    /// Unix seconds.
    pub(crate) condemned_at: u64,
    pub(crate) dedup_count: u16,
    pub(crate) my_position: u8,
    /// Term of the last master command obeyed.
    pub(crate) master_term: u32,
    /// Of the epoch, in chain order.
    pub(crate) members: Vec<ServerId>,
    /// Newest first; unused ones are zero.
    pub(crate) history: [EpochStart; HISTORY],
    /// Above `committed_seq`: no read is served before the seal.
    pub(crate) last_overwrite_seq: u64,
}

impl Hdr {
    /// The header of a slot that holds nothing. What belongs to the slot itself stays: which copies
    /// are current, how far its extents are written, and whether they are shared.
    pub(crate) fn freed(&self) -> Self {
        Self {
            common: Common { chunk: 0, ..self.common.clone() },
            written_upto: self.written_upto,
            flags: Flags(self.flags.0 & (Flags::SHARED | Flags::QUARANTINED)),
            child_copy: self.child_copy,
            ..Self::default()
        }
    }

    pub(crate) fn chunk(&self) -> ChunkHandle {
        ChunkHandle(self.common.chunk)
    }

    pub(crate) fn has_child(&self, child: Child) -> bool {
        self.child_present & child.bit() != 0
    }

    /// Which copy of a child is current.
    pub(crate) fn copy_of(&self, child: Child) -> usize {
        usize::from(self.child_copy & child.bit() != 0)
    }

    /// The partial block at the end lies in place, or goes there with the next checkpoint: the content is
    /// final, or its length is.
    pub(crate) fn tail_goes_in_place(&self) -> bool {
        self.content_is_final() || self.flags.has(Flags::FIXED)
    }

    /// Sealed, or condemned after it.
    pub(crate) fn content_is_final(&self) -> bool {
        self.state == SlotState::Sealed || (self.state == SlotState::Condemned && self.prior_state == SlotState::Sealed)
    }

    pub(crate) fn encode(&self) -> Box<Page> {
        let fields = self.encode_fields();
        page::encode(PageKind::Header, &self.common, &fields)
    }

    fn encode_fields(&self) -> Vec<u8> {
        assert!(self.members.len() <= MEMBERS_MAX, "a chain has at most eight members");
        let mut out = Writer::with_capacity(HDR_END - COMMON_LEN);
        out.u8(self.state as u8);
        out.u8(self.prior_state as u8);
        out.u16(self.flags.0);
        out.u32(self.epoch.0);
        out.u32(self.promised.0);
        out.u32(self.durable_len);
        out.u32(self.committed_len);
        out.u32(self.sealed_len);
        out.u64(self.last_seq);
        out.u64(self.committed_seq);
        out.u64(self.suspect_seq);
        out.bytes(&self.sealed_digest);
        out.u32(self.written_upto);
        out.u32(self.tail_len);
        out.u32(self.tail_crc);
        out.u32(self.child_copy);
        out.u32(self.child_present);
        out.u32s(&self.dedup_crc);
        out.u32s(&self.crc_page_crc);
        out.u64(self.prev.0);
        out.u64(self.file.0);
        out.u64(self.authority);
        out.u64(self.condemned_at);
        out.u16(self.dedup_count);
        out.u8(u8::try_from(self.members.len()).unwrap_or(u8::MAX));
        out.u8(self.my_position);
        out.u32(self.master_term);
        put_members(&mut out, &self.members);
        for start in &self.history {
            out.u32(start.epoch);
            out.u32(start.start_len);
            out.u64(start.start_seq);
        }
        out.u64(self.last_overwrite_seq);
        let fields = out.finish();
        assert_eq!(fields.len(), HDR_END - COMMON_LEN, "HDR is laid out as drawn");
        fields
    }

    pub(crate) fn decode(page: &Page) -> Result<Self, Bad> {
        let (common, mut input) = page::decode(PageKind::Header, page)?;
        let hdr = Self::decode_fields(common, &mut input)?;
        rest_is_zero(&mut input)?;
        hdr.check()?;
        Ok(hdr)
    }

    fn decode_fields(common: Common, input: &mut Reader<'_>) -> Result<Self, Bad> {
        let state = SlotState::from_u8(input.u8()?)?;
        let prior_state = SlotState::from_u8(input.u8()?)?;
        let flags = Flags(input.u16()?);
        let mut hdr = Self {
            common,
            state,
            prior_state,
            flags,
            epoch: Epoch(input.u32()?),
            promised: Epoch(input.u32()?),
            durable_len: input.u32()?,
            committed_len: input.u32()?,
            sealed_len: input.u32()?,
            last_seq: input.u64()?,
            committed_seq: input.u64()?,
            suspect_seq: input.u64()?,
            sealed_digest: input.array()?,
            written_upto: input.u32()?,
            tail_len: input.u32()?,
            tail_crc: input.u32()?,
            child_copy: input.u32()?,
            child_present: input.u32()?,
            ..Self::default()
        };
        for crc in hdr.dedup_crc.iter_mut().chain(&mut hdr.crc_page_crc) {
            *crc = input.u32()?;
        }
        hdr.prev = ChunkHandle(input.u64()?);
        hdr.file = InodeId(input.u64()?);
        hdr.authority = input.u64()?;
        hdr.condemned_at = input.u64()?;
        hdr.dedup_count = input.u16()?;
        let member_count = input.u8()?;
        hdr.my_position = input.u8()?;
        hdr.master_term = input.u32()?;
        hdr.members = take_members(input, member_count)?;
        for start in &mut hdr.history {
            *start = EpochStart { epoch: input.u32()?, start_len: input.u32()?, start_seq: input.u64()? };
        }
        hdr.last_overwrite_seq = input.u64()?;
        Ok(hdr)
    }

    /// What must hold of any header, whatever wrote it.
    fn check(&self) -> Result<(), Bad> {
        if self.flags.0 & !Flags::ALL != 0 {
            return Err(bad("flags"));
        }
        let lens = [self.durable_len, self.committed_len, self.sealed_len, self.written_upto];
        if lens.iter().any(|len| *len > CHUNK_CAPACITY) || self.committed_len > self.durable_len {
            return Err(bad("length"));
        }
        if self.tail_len >= BLOCK || (self.tail_len != 0 && self.tail_len != self.durable_len % BLOCK) {
            return Err(bad("tail_len"));
        }
        if (self.child_copy | self.child_present) & !CHILD_BITS != 0 {
            return Err(bad("child bits"));
        }
        if usize::from(self.dedup_count) > DEDUP_MAX || self.promised < self.epoch {
            return Err(bad("dedup_count or promised"));
        }
        if (self.state == SlotState::Free) != (self.common.chunk == 0) {
            return Err(bad("chunk of a free slot"));
        }
        Ok(())
    }
}

impl Root for Hdr {
    fn page_seq(&self) -> u64 {
        self.common.page_seq
    }
}

/// Eight server ids; those not used are zero.
pub(crate) fn put_members(out: &mut Writer, members: &[ServerId]) {
    for index in 0..MEMBERS_MAX {
        out.u32(members.get(index).map_or(0, |server| server.0));
    }
}

/// The first `count` of eight server ids.
pub(crate) fn take_members(input: &mut Reader<'_>, count: u8) -> Result<Vec<ServerId>, wire::message::Malformed> {
    let mut all = [0; MEMBERS_MAX];
    for id in &mut all {
        *id = input.u32()?;
    }
    let (used, unused) =
        all.split_at_checked(usize::from(count)).ok_or(wire::message::Malformed::Field("member_count"))?;
    if unused.iter().any(|id| *id != 0) {
        return Err(wire::message::Malformed::Field("members"));
    }
    Ok(used.iter().map(|id| ServerId(*id)).collect())
}

/// Offsets of the fields, summed up and held against the drawing.
mod at {
    pub(super) const STATE: usize = super::COMMON_LEN;
    pub(super) const EPOCH: usize = STATE + 4;
    pub(super) const LAST_SEQ: usize = EPOCH + 5 * 4;
    pub(super) const DIGEST: usize = LAST_SEQ + 3 * 8;
    pub(super) const WRITTEN: usize = DIGEST + 16;
    pub(super) const DEDUP_CRC: usize = WRITTEN + 5 * 4;
    pub(super) const CRC_CRC: usize = DEDUP_CRC + 4 * super::DEDUP_PAGES;
    pub(super) const PREV: usize = CRC_CRC + 4 * super::CRC_PAGES;
    pub(super) const COUNTS: usize = PREV + 4 * 8;
    pub(super) const MEMBERS: usize = COUNTS + 8;
    pub(super) const HISTORY: usize = MEMBERS + 4 * super::MEMBERS_MAX;
    pub(super) const OVERWRITE: usize = HISTORY + 16 * super::HISTORY;
}
const _: () = assert!(at::EPOCH == 68 && at::LAST_SEQ == 88 && at::DIGEST == 112 && at::WRITTEN == 128);
const _: () = assert!(at::DEDUP_CRC == 148 && at::CRC_CRC == 164 && at::PREV == 232 && at::COUNTS == 264);
const _: () = assert!(at::MEMBERS == 272 && at::HISTORY == 304 && at::OVERWRITE == 432);
const _: () = assert!(at::OVERWRITE + 8 == HDR_END && HDR_END <= SECTOR);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::page::tests::{common, every_bit_counts, forged};

    pub(crate) fn sample() -> Hdr {
        let mut crc_page_crc = [0; CRC_PAGES];
        (crc_page_crc[0], crc_page_crc[16]) = (0x50, 0x51);
        let mut history = [EpochStart::default(); HISTORY];
        history[0] = EpochStart { epoch: 2, start_len: 3, start_seq: 4 };
        Hdr {
            common: common(),
            state: SlotState::Condemned,
            prior_state: SlotState::Rwr,
            flags: Flags(Flags::FILLED | Flags::CLOSED),
            epoch: Epoch(0x11),
            promised: Epoch(0x12),
            durable_len: 0x1300,
            committed_len: 0x1200,
            sealed_len: 0x14,
            last_seq: 0x15,
            committed_seq: 0x16,
            suspect_seq: 0x17,
            sealed_digest: [0x18; 16],
            written_upto: 0x1900,
            tail_len: 0x300,
            tail_crc: 0x1b,
            child_copy: 0x1c,
            child_present: 0x1d,
            dedup_crc: [0x40, 0x41, 0x42, 0x43],
            crc_page_crc,
            prev: ChunkHandle(0x20),
            file: InodeId(0x21),
            authority: 0x22,
            condemned_at: 0x23,
            dedup_count: 0x24,
            my_position: 1,
            master_term: 0x25,
            members: vec![ServerId(0x31), ServerId(0x32)],
            history,
            last_overwrite_seq: 0x60,
        }
    }

    /// The layout is a promise to every other build. If this test must change, so must the format number.
    #[test]
    fn the_header_is_pinned_and_believed_only_whole() {
        let page = sample().encode();
        let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        assert_eq!((&page[..4], page[10]), (&b"HHDR"[..], 3));
        assert_eq!(page[64..68], [4, 2, 34, 0]);
        let words = [(68, 0x11), (72, 0x12), (76, 0x1300), (80, 0x1200), (84, 0x14), (128, 0x1900), (132, 0x300)];
        let more = [(136, 0x1b), (140, 0x1c), (144, 0x1d), (148, 0x40), (160, 0x43), (164, 0x50), (228, 0x51)];
        let last = [(268, 0x25), (272, 0x31), (276, 0x32), (280, 0), (304, 2), (308, 3)];
        for (at, want) in words.into_iter().chain(more).chain(last) {
            assert_eq!(u32_at(at), want, "{at}");
        }
        let longs = [(88, 0x15), (96, 0x16), (104, 0x17), (232, 0x20), (240, 0x21), (248, 0x22), (256, 0x23)];
        for (at, want) in longs.into_iter().chain([(312, 4), (432, 0x60)]) {
            assert_eq!(u64_at(at), want, "{at}");
        }
        assert_eq!(page[112..128], [0x18; 16]);
        assert_eq!(page[264..268], [0x24, 0, 2, 1]);
        assert!(page[440..].iter().all(|byte| *byte == 0));
        assert_eq!(Hdr::decode(&page), Ok(sample()));
        every_bit_counts(&page, |page| Hdr::decode(page).is_ok());
    }

    #[test]
    fn impossible_headers_are_refused_even_under_a_right_checksum() {
        let page = sample().encode();
        let cases: [(usize, u32); 10] = [
            (64, 5),                  // state
            (66, 128),                // an unknown flag
            (76, CHUNK_CAPACITY + 1), // longer than a chunk
            (80, 0x1301),             // more committed than durable
            (132, 1),                 // a tail that is not the rest of the length
            (144, 1 << 22),           // a child that does not exist
            (264, 401 | 2 << 16),     // too many dedup entries
            (266, 9),                 // too many members
            (280, 7),                 // a member beyond the count
            (440, 1),                 // reserved
        ];
        for (at, value) in cases {
            let width = if at == 66 || at == 266 { 1 } else { 4 };
            let forged = forged(&page, at, &value.to_le_bytes()[..width]);
            assert!(matches!(Hdr::decode(&forged), Err(Bad::Field(_))), "{at}");
        }
    }

    #[test]
    fn a_freed_slot_keeps_what_belongs_to_the_slot() {
        let freed = sample().freed();
        assert_eq!((freed.state, freed.chunk(), freed.written_upto), (SlotState::Free, ChunkHandle::NONE, 0x1900));
        assert_eq!((freed.child_copy, freed.child_present, freed.common.page_seq), (0x1c, 0, 5));
        assert_eq!(Hdr::decode(&freed.encode()), Ok(freed));
    }
}
