//! Digests of an upload: `Content-Digest` and `Repr-Digest` (RFC 9530), `x-amz-checksum-crc32c` and
//! `x-amz-checksum-sha256`. Only what the client sent is computed.

use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256, Sha512};

use crate::fail::Fail;

/// Digests being computed, each with the value it must have.
#[derive(Default)]
pub(crate) struct Expected(Vec<(Running, Vec<u8>)>);

enum Running {
    Crc32c(u32),
    Sha256(Box<Sha256>),
    Sha512(Box<Sha512>),
}

impl Expected {
    /// Reads the fields. Algorithms that are not known are ignored, as RFC 9530 asks; a known one with a
    /// value that cannot be its digest is refused.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Fail> {
        let mut expected = Self::default();
        for field in ["content-digest", "repr-digest"] {
            for value in headers.get_all(field) {
                expected.add_dictionary(field, text(field, value)?)?;
            }
        }
        for (field, algorithm) in [("x-amz-checksum-crc32c", "crc32c"), ("x-amz-checksum-sha256", "sha-256")] {
            if let Some(value) = headers.get(field) {
                expected.add(field, algorithm, text(field, value)?)?;
            }
        }
        Ok(expected)
    }

    /// Whether a SHA-256 was sent: such a file is worth keeping it.
    pub(crate) fn has_sha256(&self) -> bool {
        self.0.iter().any(|(running, _)| matches!(running, Running::Sha256(_)))
    }

    /// Takes the next bytes of the content.
    pub(crate) fn update(&mut self, data: &[u8]) {
        for (running, _) in &mut self.0 {
            match running {
                Running::Crc32c(crc) => *crc = wire::checksum::crc_append(*crc, data),
                Running::Sha256(hash) => hash.update(data),
                Running::Sha512(hash) => hash.update(data),
            }
        }
    }

    /// Compares.
    pub(crate) fn verify(self) -> Result<(), Fail> {
        for (running, want) in self.0 {
            let (name, got) = match running {
                Running::Crc32c(crc) => ("crc32c", crc.to_be_bytes().to_vec()),
                Running::Sha256(hash) => ("sha-256", hash.finalize().to_vec()),
                Running::Sha512(hash) => ("sha-512", hash.finalize().to_vec()),
            };
            if got != want {
                return Err(Fail::digest_mismatch(name));
            }
        }
        Ok(())
    }

    /// `sha-256=:...:, sha-512=:...:`
    fn add_dictionary(&mut self, field: &str, text: &str) -> Result<(), Fail> {
        for member in text.split(',').map(str::trim).filter(|member| !member.is_empty()) {
            let Some((name, value)) = member.split_once('=') else {
                return Err(malformed(field));
            };
            let Some(value) = value.trim().strip_prefix(':').and_then(|rest| rest.strip_suffix(':')) else {
                return Err(malformed(field));
            };
            self.add(field, name.trim(), value)?;
        }
        Ok(())
    }

    fn add(&mut self, field: &str, algorithm: &str, base64: &str) -> Result<(), Fail> {
        let (running, len) = match algorithm {
            "crc32c" => (Running::Crc32c(0), 4),
            "sha-256" => (Running::Sha256(Box::default()), 32),
            "sha-512" => (Running::Sha512(Box::default()), 64),
            _ => return Ok(()),
        };
        match STANDARD.decode(base64) {
            Ok(want) if want.len() == len => self.0.push((running, want)),
            _ => return Err(malformed(field)),
        }
        // A dictionary has one value per algorithm; four fields have no more than a handful in all.
        if self.0.len() > 8 { Err(malformed(field)) } else { Ok(()) }
    }
}

/// The value of a `Repr-Digest` field for a known SHA-256.
pub(crate) fn field_of_sha256(sha256: &[u8; 32]) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("sha-256=:{}:", STANDARD.encode(sha256))).ok()
}

fn text<'a>(field: &str, value: &'a HeaderValue) -> Result<&'a str, Fail> {
    value.to_str().map_err(|_| malformed(field))
}

fn malformed(field: &str) -> Fail {
    Fail::invalid(format!("{field} is malformed: expected base64 of a digest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(field: &'static str, value: &str, pieces: &[&[u8]]) -> Result<(), Fail> {
        let mut headers = HeaderMap::new();
        headers.insert(field, value.parse().unwrap());
        let mut expected = Expected::of(&headers)?;
        pieces.iter().for_each(|piece| expected.update(piece));
        expected.verify()
    }

    const HELLO_SHA256: &str = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:";

    #[test]
    fn digests_are_checked_over_all_pieces() {
        assert!(check("content-digest", HELLO_SHA256, &[b"hel", b"lo"]).is_ok());
        assert!(check("repr-digest", HELLO_SHA256, &[b"hello"]).is_ok());
        assert!(check("repr-digest", HELLO_SHA256, &[b"hellO"]).is_err());
        // Check value of CRC-32C: 0xE3069283.
        assert!(check("x-amz-checksum-crc32c", "4waSgw==", &[b"1234", b"56789"]).is_ok());
        assert!(check("x-amz-checksum-crc32c", "4waSgw==", &[b"12345678"]).is_err());
    }

    #[test]
    fn every_member_of_a_dictionary_counts_and_unknown_ones_do_not() {
        let both = format!("md5=:1B2M2Y8AsgTpgAmY7PhCfg==:, {HELLO_SHA256}, crc32c=:mnG7TA==:");
        assert!(check("content-digest", &both, &[b"hello"]).is_ok());
        let wrong = format!("{HELLO_SHA256}, crc32c=:4waSgw==:");
        assert!(check("content-digest", &wrong, &[b"hello"]).is_err());
    }

    #[test]
    fn a_value_that_cannot_be_a_digest_is_refused() {
        for bad in ["sha-256=:AAAA:", "sha-256=abc", "sha-256", "sha-256=:***:"] {
            assert!(check("content-digest", bad, &[b""]).is_err(), "{bad}");
        }
    }
}
