//! Frame header: 32 bytes in front of every message.
//!
//! ```text
//!  0        4        8        12       16   18   20       24               32
//!  +--------+--------+--------+--------+----+----+--------+----------------+
//!  | header | fields | fields | payload|pro-|tag | dead-  |   request id   |
//!  | crc    | crc    | length | length |toc.|    | line ms|                |
//!  +--------+--------+--------+--------+----+----+--------+----------------+
//! ```
//!
//! Little-endian. Then `fields_len` bytes of fields, then `payload_len` bytes of payload. The header
//! has a checksum of its own so that the lengths can be trusted before the body has arrived: a
//! flipped length bit must not become a 4 GiB allocation. The payload has none here: its checksums,
//! one per 4 KiB, are among the fields, because they are also what the disk stores and the reader
//! checks, and computing them twice would cost a tenth of a write.

use crate::limits::{CONTROL_LEN_MAX, FIELDS_LEN_MAX, PAYLOAD_LEN_MAX};
use crate::message::{Body, Malformed};

/// Encoded size of [`Header`].
pub const HEADER_LEN: usize = 32;

/// Protocol version this build speaks.
pub const PROTOCOL: u16 = 1;

/// A decoded frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// CRC-32C of the fields.
    pub fields_crc: u32,
    /// Length of the fields: at most [`CONTROL_LEN_MAX`], with a payload at most [`FIELDS_LEN_MAX`].
    pub fields_len: u32,
    /// Length of the payload: at most [`PAYLOAD_LEN_MAX`].
    pub payload_len: u32,
    /// Which message it is, see [`crate::message::tag`].
    pub tag: u16,
    /// How long the caller will still wait, in milliseconds; zero is "for ever". Relative, so that
    /// clocks need not agree.
    pub deadline_ms: u32,
    /// Chosen by the caller, echoed in the answer. Zero for messages without one.
    pub request_id: u64,
}

/// Why bytes are not a frame. Each is the peer's fault: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The header checksum does not match: a torn or foreign stream.
    #[error("header checksum does not match: not a Hercules peer, or a damaged stream")]
    HeaderChecksum,
    /// The fields checksum does not match.
    #[error("checksum of the fields does not match")]
    FieldsChecksum,
    /// The peer speaks another protocol version.
    #[error("peer speaks protocol {0}, this build speaks {PROTOCOL}")]
    Protocol(u16),
    /// The fields are longer than allowed.
    #[error("{0} bytes of fields are too many")]
    FieldsTooLong(u32),
    /// The payload is longer than [`PAYLOAD_LEN_MAX`].
    #[error("{0} bytes of payload are too many")]
    PayloadTooLong(u32),
}

impl Header {
    /// A header for these fields, with their checksum.
    ///
    /// # Panics
    ///
    /// When a length is over its limit: what is sent was bounded when it was made.
    #[must_use]
    pub fn new(tag: u16, request_id: u64, deadline_ms: u32, fields: &[u8], payload_len: usize) -> Self {
        let fields_max = if payload_len == 0 { CONTROL_LEN_MAX } else { FIELDS_LEN_MAX };
        let fields_len = u32::try_from(fields.len()).unwrap_or(u32::MAX);
        let payload_len = u32::try_from(payload_len).unwrap_or(u32::MAX);
        assert!(fields_len <= fields_max, "fields of message {tag} are bounded when they are made");
        assert!(payload_len <= PAYLOAD_LEN_MAX, "a frame carries at most 1 MiB");
        Self { fields_crc: crc32c::crc32c(fields), fields_len, payload_len, tag, deadline_ms, request_id }
    }

    /// Encodes the header, computing its checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[4..8].copy_from_slice(&self.fields_crc.to_le_bytes());
        out[8..12].copy_from_slice(&self.fields_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_len.to_le_bytes());
        out[16..18].copy_from_slice(&PROTOCOL.to_le_bytes());
        out[18..20].copy_from_slice(&self.tag.to_le_bytes());
        out[20..24].copy_from_slice(&self.deadline_ms.to_le_bytes());
        out[24..32].copy_from_slice(&self.request_id.to_le_bytes());
        let header_crc = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&header_crc.to_le_bytes());
        out
    }

    /// Decodes a header from the front of `bytes`. `None` means "read more first".
    ///
    /// # Errors
    ///
    /// See [`Error`]. The checksum is tested first: nothing else is read from bytes it rejects.
    pub fn decode(bytes: &[u8]) -> Option<Result<Self, Error>> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        Some(Self::decode_exact(header))
    }

    /// Decodes a whole header.
    ///
    /// # Errors
    ///
    /// As [`Header::decode`].
    pub fn decode_exact(bytes: &[u8; HEADER_LEN]) -> Result<Self, Error> {
        if crc32c::crc32c(&bytes[4..]) != u32_at(bytes, 0) {
            return Err(Error::HeaderChecksum);
        }
        let protocol = u16_at(bytes, 16);
        if protocol != PROTOCOL {
            return Err(Error::Protocol(protocol));
        }
        let fields_len = u32_at(bytes, 8);
        let payload_len = u32_at(bytes, 12);
        let fields_max = if payload_len == 0 { CONTROL_LEN_MAX } else { FIELDS_LEN_MAX };
        if fields_len > fields_max {
            return Err(Error::FieldsTooLong(fields_len));
        }
        if payload_len > PAYLOAD_LEN_MAX {
            return Err(Error::PayloadTooLong(payload_len));
        }
        Ok(Self {
            fields_crc: u32_at(bytes, 4),
            fields_len,
            payload_len,
            tag: u16_at(bytes, 18),
            deadline_ms: u32_at(bytes, 20),
            request_id: u64::from(u32_at(bytes, 24)) | u64::from(u32_at(bytes, 28)) << 32,
        })
    }

    /// Checks received fields against the header.
    ///
    /// # Errors
    ///
    /// [`Error::FieldsChecksum`].
    pub fn check_fields(&self, fields: &[u8]) -> Result<(), Error> {
        if fields.len() == self.fields_len as usize && crc32c::crc32c(fields) == self.fields_crc {
            Ok(())
        } else {
            Err(Error::FieldsChecksum)
        }
    }
}

/// Takes the message out of a received frame: tag, checksum, layout, and the length of the payload
/// that the fields describe. The payload itself is checked against the checksums among the fields.
///
/// # Errors
///
/// [`Malformed`]: the peer's fault, close the connection.
pub fn open<B: Body>(header: &Header, fields: &[u8]) -> Result<B, Malformed> {
    if header.tag != B::TAG {
        return Err(Malformed::Tag(header.tag));
    }
    header.check_fields(fields)?;
    let body = B::decode(fields)?;
    let (announced, described) = (header.payload_len, body.payload_len());
    if announced != described {
        return Err(Malformed::Payload { announced, described });
    }
    Ok(body)
}

/// Header and fields of one message, ready to be sent in front of its payload.
#[must_use]
pub fn head<B: Body>(body: &B, request_id: u64, deadline_ms: u32, payload_len: usize) -> Vec<u8> {
    let fields = body.encode();
    let header = Header::new(B::TAG, request_id, deadline_ms, &fields, payload_len);
    let mut out = Vec::with_capacity(HEADER_LEN + fields.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&fields);
    out
}

fn u16_at(bytes: &[u8; HEADER_LEN], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Header = Header {
        fields_crc: 0x1122_3344,
        fields_len: 5,
        payload_len: 4096,
        tag: 7,
        deadline_ms: 1000,
        request_id: 0x0102_0304_0506_0708,
    };

    /// The layout is a promise to every other build. If this test must change, so must `PROTOCOL`.
    #[test]
    fn layout_is_pinned() {
        let bytes = SAMPLE.encode();
        assert_eq!(bytes[4..20], [0x44, 0x33, 0x22, 0x11, 5, 0, 0, 0, 0, 16, 0, 0, 1, 0, 7, 0]);
        assert_eq!(bytes[20..32], [0xe8, 3, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
    }

    #[test]
    fn every_prefix_asks_for_more() {
        let bytes = SAMPLE.encode();
        for len in 0..HEADER_LEN {
            assert_eq!(Header::decode(&bytes[..len]), None);
        }
        assert_eq!(Header::decode(&bytes), Some(Ok(SAMPLE)));
    }

    #[test]
    fn every_flipped_bit_is_rejected() {
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = SAMPLE.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bytes), Some(Err(Error::HeaderChecksum)), "bit {bit}");
        }
    }

    #[test]
    fn length_limits_are_inclusive() {
        let cases = [
            (CONTROL_LEN_MAX, 0, true),
            (CONTROL_LEN_MAX + 1, 0, false),
            (FIELDS_LEN_MAX, 1, true),
            (FIELDS_LEN_MAX + 1, 1, false),
            (0, PAYLOAD_LEN_MAX, true),
            (0, PAYLOAD_LEN_MAX + 1, false),
        ];
        for (fields_len, payload_len, want_ok) in cases {
            let bytes = Header { fields_len, payload_len, ..SAMPLE }.encode();
            assert_eq!(Header::decode(&bytes).unwrap().is_ok(), want_ok, "{fields_len} {payload_len}");
        }
    }

    #[test]
    fn another_protocol_is_named_and_not_called_damage() {
        let mut bytes = SAMPLE.encode();
        bytes[16] = 9;
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bytes), Some(Err(Error::Protocol(9))));
    }
}
