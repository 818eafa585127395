//! The one place that knows bincode: control messages and operation-log entries.
//!
//! Fixed-width little-endian integers, a size limit, no trailing bytes. Plain
//! `bincode::deserialize` has neither limit nor the last check.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::CONTROL_LEN_MAX;
use crate::message::Malformed;

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(u64::from(CONTROL_LEN_MAX))
        .reject_trailing_bytes()
}

/// Encodes one value.
///
/// # Panics
///
/// When the value is larger than [`CONTROL_LEN_MAX`]: senders page before that, so it is a broken
/// promise of our own.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    match options().serialize(value) {
        Ok(bytes) => bytes,
        Err(error) => panic!("control messages are paged below {CONTROL_LEN_MAX} bytes: {error}"),
    }
}

/// Length of the encoding, bytes: for senders that page by it.
#[must_use]
pub fn encoded_len<T: Serialize>(value: &T) -> u64 {
    options().with_no_limit().serialized_size(value).unwrap_or(u64::MAX)
}

/// Decodes exactly one value.
///
/// # Errors
///
/// [`Malformed::Codec`] for anything else: too long, too short, trailing bytes, impossible values.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    options().deserialize(bytes).map_err(|error| Malformed::Codec(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_are_rejected() {
        let mut bytes = encode(&(7_u32, String::from("seven")));
        assert_eq!(decode::<(u32, String)>(&bytes), Ok((7, "seven".into())));
        bytes.push(0);
        assert!(decode::<(u32, String)>(&bytes).is_err());
    }

    #[test]
    fn the_length_is_known_before_it_is_encoded() {
        let value = (7_u32, String::from("seven"), vec![1_u64; 300_000]);
        assert_eq!(encoded_len(&value.1), 13);
        assert!(encoded_len(&value) > u64::from(CONTROL_LEN_MAX));
    }

    #[test]
    fn a_hostile_length_is_an_error_and_not_an_allocation() {
        let mut bytes = encode(&vec![1_u8, 2, 3]);
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode::<Vec<u8>>(&bytes).is_err());
    }
}
