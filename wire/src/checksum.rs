//! CRC-32C per 4 KiB block: computed once by the client, checked at every hop, sent back with every read.

use crate::limits::BLOCK_SIZE;

/// CRC-32C (Castagnoli) of some bytes.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Continues a CRC-32C over further bytes.
#[must_use]
pub fn crc_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// The CRC of each 4 KiB of `payload`, counted from its start; the last one may cover less.
#[must_use]
pub fn block_crcs(payload: &[u8]) -> Vec<u32> {
    payload.chunks(BLOCK_SIZE as usize).map(crc).collect()
}

/// Whether `crcs` are exactly the block CRCs of `payload`.
#[must_use]
pub fn matches(payload: &[u8], crcs: &[u32]) -> bool {
    crcs.len() == block_count(payload.len())
        && payload.chunks(BLOCK_SIZE as usize).zip(crcs).all(|(block, want)| crc(block) == *want)
}

/// How many blocks `len` bytes touch when they start at a block.
#[must_use]
pub fn block_count(len: usize) -> usize {
    len.div_ceil(BLOCK_SIZE as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomial_is_castagnoli() {
        assert_eq!(crc(b"123456789"), 0xE306_9283);
        assert_eq!(crc_append(crc(b"1234"), b"56789"), 0xE306_9283);
    }

    #[test]
    fn a_flipped_byte_or_a_missing_checksum_does_not_match() {
        let mut payload = vec![7_u8; 9000];
        let crcs = block_crcs(&payload);
        assert_eq!(crcs.len(), 3);
        assert!(matches(&payload, &crcs));
        assert!(!matches(&payload, &crcs[..2]));
        payload[8999] ^= 1;
        assert!(!matches(&payload, &crcs));
    }
}
