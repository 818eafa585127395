//! The disk of a chunkserver that is not running: what is on it, whether it is whole, and what an
//! operator can do about it. The engine looks and decides; here is what people type and see.

pub(crate) mod fsck;
mod fsck_layout;
pub(crate) mod inspect;
mod inspect_layout;
pub(crate) mod manage;

use std::path::Path;

use engine::store::OpenError;
use wire::{ChunkHandle, ClusterId};

use crate::exit::{Code, Failure};

/// A chunk as every message shows it: 16 hexadecimal digits, or fewer.
pub(crate) fn parse_chunk(text: &str) -> Result<ChunkHandle, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let handle = u64::from_str_radix(digits, 16).ok().filter(|handle| *handle != 0);
    handle.map(ChunkHandle).ok_or_else(|| "a chunk is a number of up to 16 hexadecimal digits, not zero".into())
}

/// A cluster as `hercules status` shows it.
pub(crate) fn parse_cluster(text: &str) -> Result<ClusterId, String> {
    let digits = text.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> =
        digits.0.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    let bytes = bytes.filter(|_| digits.1.is_empty()).and_then(|bytes| bytes.try_into().ok());
    bytes.map(ClusterId).ok_or_else(|| "a cluster is 32 hexadecimal digits, as `hercules status` shows them".into())
}

/// An offset in a file, decimal or, with `0x`, hexadecimal.
pub(crate) fn parse_offset(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text} is not an offset: use a number, or 0x and hexadecimal digits"))
}

/// Refuses a folder that is not there: a typing error is not a broken disk.
///
/// # Errors
///
/// [`Code::NotFound`].
pub(crate) fn must_exist(root: &Path) -> Result<(), Failure> {
    if root.is_dir() {
        return Ok(());
    }
    let failure = Failure::new(Code::NotFound, format!("{}: no such folder", root.display()));
    Err(failure.remedy("name the folder that the server has as --data-dir"))
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::new(Code::Config, error.what).remedy(error.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_typed() {
        assert_eq!(parse_chunk(&ChunkHandle(0xab).to_string()), Ok(ChunkHandle(0xab)));
        assert_eq!(parse_chunk("0xab"), Ok(ChunkHandle(0xab)));
        assert!(["", "0", "xyz", "11112222333344445"].iter().all(|text| parse_chunk(text).is_err()));
        let cluster = ClusterId(*b"0123456789abcdef");
        assert_eq!(parse_cluster(&cluster.to_string()), Ok(cluster));
        assert!(["", "ab", &"g".repeat(32), &"a".repeat(33)].iter().all(|text| parse_cluster(text).is_err()));
        assert_eq!((parse_offset("4096"), parse_offset("0x4000000")), (Ok(4096), Ok(64 << 20)));
        assert!(parse_offset("4k").is_err());
    }
}
