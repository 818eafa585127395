//! The cluster key: the one secret that all processes of a cluster share.
//!
//! It never travels. What travels are keyed MACs made with it, see [`crate::handshake`].

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Fewest bytes of randomness: what the MAC can use.
pub const KEY_LEN_MIN: usize = 32;

/// Longest file that is taken for a key, bytes.
pub const KEY_FILE_LEN_MAX: usize = 1024;

/// So many different values a key has at least. Of 32 random bytes about 30 differ; that fewer than
/// this do happens in one of 10^18 keys, and in every one that somebody typed by holding a key down.
const DISTINCT_MIN: usize = 12;

/// Length of a MAC, bytes.
pub const MAC_LEN: usize = 32;

/// Why bytes are no key. The texts name the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Too few bytes.
    #[error("{0} bytes are too few for a key: it needs {KEY_LEN_MIN} random ones")]
    Short(usize),
    /// More than [`KEY_FILE_LEN_MAX`].
    #[error("more than {KEY_FILE_LEN_MAX} bytes are no key")]
    Long,
    /// Text that is neither hex nor base64: a passphrase can be guessed by whoever has seen one handshake.
    #[error("the text is neither hex nor base64: a passphrase is no key")]
    Text,
    /// Hardly any two bytes differ.
    #[error("it is not random: only {0} different bytes")]
    Weak(usize),
}

/// A secret of the whole cluster. Not printed, not compared.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

impl ClusterKey {
    /// Takes the content of a key file: hex, base64 (either alphabet, padded or not), or raw bytes.
    /// White space around text does not count. The same bytes are the same key, however they are written.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn parse(content: &[u8]) -> Result<Self, KeyError> {
        if content.len() > KEY_FILE_LEN_MAX {
            return Err(KeyError::Long);
        }
        let is_text = content.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        let bytes = if is_text { decode_text(content.trim_ascii())? } else { content.to_vec() };
        if bytes.len() < KEY_LEN_MIN {
            return Err(KeyError::Short(bytes.len()));
        }
        let mut seen = [false; 256];
        bytes.iter().for_each(|byte| seen[usize::from(*byte)] = true);
        let distinct = seen.iter().filter(|seen| **seen).count();
        if distinct < DISTINCT_MIN {
            return Err(KeyError::Weak(distinct));
        }
        Ok(Self(mac(&bytes, "hercules cluster key", &[]).finalize().into_bytes().into()))
    }

    /// A key from 32 random bytes: for processes that make one, and for tests.
    #[must_use]
    pub fn from_random(bytes: [u8; KEY_LEN_MIN]) -> Self {
        Self(mac(&bytes, "hercules cluster key", &[]).finalize().into_bytes().into())
    }

    /// MAC of these parts for one purpose: another label is another function.
    pub(crate) fn mac(&self, label: &str, parts: &[&[u8]]) -> [u8; MAC_LEN] {
        mac(&self.0, label, parts).finalize().into_bytes().into()
    }

    /// Whether `given` is that MAC; in constant time.
    pub(crate) fn verifies(&self, label: &str, parts: &[&[u8]], given: &[u8; MAC_LEN]) -> bool {
        mac(&self.0, label, parts).verify_slice(given).is_ok()
    }
}

/// A new key as text for a key file: 64 hex digits and a line end.
#[must_use]
pub fn to_text(random: &[u8; KEY_LEN_MIN]) -> String {
    let mut out: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    out.push('\n');
    out
}

/// HMAC-SHA-256 over a label and parts, each with its length in front: no two inputs read the same.
pub(crate) fn mac(key: &[u8], label: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
    let made = <Hmac<Sha256> as Mac>::new_from_slice(key);
    #[expect(clippy::expect_used, reason = "HMAC is defined for keys of every length")]
    let mut out = made.expect("HMAC takes keys of every length");
    for part in std::iter::once(&label.as_bytes()).chain(parts) {
        out.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        out.update(part);
    }
    out
}

fn decode_text(text: &[u8]) -> Result<Vec<u8>, KeyError> {
    if text.is_empty() {
        return Err(KeyError::Short(0));
    }
    if text.iter().all(u8::is_ascii_hexdigit) && text.len().is_multiple_of(2) {
        return text.chunks(2).map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?)).collect();
    }
    let bare = text.trim_ascii_end();
    let end = bare.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let decoded = STANDARD_NO_PAD.decode(&bare[..end]).or_else(|_| URL_SAFE_NO_PAD.decode(&bare[..end]));
    decoded.map_err(|_| KeyError::Text)
}

fn digit(byte: u8) -> Result<u8, KeyError> {
    let value = char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    value.ok_or(KeyError::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random() -> [u8; 32] {
        std::array::from_fn(|index| u8::try_from((index * 7 + 131) & 0xff).unwrap())
    }

    fn tag(key: &ClusterKey) -> [u8; MAC_LEN] {
        key.mac("test", &[b"x"])
    }

    #[test]
    fn the_same_bytes_are_the_same_key_however_they_are_written() {
        let raw = random();
        let hex = to_text(&raw);
        let upper = hex.to_uppercase();
        let base64 = format!("  {}\n", base64::engine::general_purpose::STANDARD.encode(raw));
        let url = URL_SAFE_NO_PAD.encode(raw);
        let want = tag(&ClusterKey::from_random(raw));
        for content in [&raw[..], hex.as_bytes(), upper.as_bytes(), base64.as_bytes(), url.as_bytes()] {
            assert_eq!(tag(&ClusterKey::parse(content).unwrap()), want, "{content:?}");
        }
        let mut other = raw;
        other[31] ^= 1;
        assert_ne!(tag(&ClusterKey::parse(&other).unwrap()), want);
    }

    #[test]
    fn what_can_be_guessed_is_no_key() {
        let refused = |content: &[u8]| ClusterKey::parse(content).unwrap_err();
        assert_eq!(refused(b""), KeyError::Short(0));
        assert_eq!(refused(b"\n"), KeyError::Short(0));
        assert_eq!(refused(&random()[..31]), KeyError::Short(31));
        assert_eq!(refused(&to_text(&random()).as_bytes()[..62]), KeyError::Short(31));
        assert_eq!(refused(b"correct horse battery staple, correct horse battery staple"), KeyError::Text);
        assert_eq!(refused(&[0; 32]), KeyError::Weak(1));
        assert_eq!(refused("ab".repeat(32).as_bytes()), KeyError::Weak(1));
        assert_eq!(refused(&[200; KEY_FILE_LEN_MAX + 1]), KeyError::Long);
    }

    /// Both ends of a connection may be of different builds: the function is as much part of the
    /// protocol as a layout.
    #[test]
    fn the_mac_is_pinned_and_its_parts_cannot_be_moved() {
        let key = ClusterKey::from_random(random());
        let hex: String = key.mac("label", &[b"ab", b"c"]).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "63bf7dd11dc2f52500e7819d5cd8ccb6f874c85fb9ecec4442864fe77c52921e");
        assert_ne!(key.mac("label", &[b"ab", b"c"]), key.mac("label", &[b"a", b"bc"]));
        assert_ne!(key.mac("label", &[b"ab"]), key.mac("labe", &[b"lab"]));
        assert!(key.verifies("label", &[b"ab"], &key.mac("label", &[b"ab"])));
        assert!(!key.verifies("label", &[b"ac"], &key.mac("label", &[b"ab"])));
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", ClusterKey::from_random(random())), "ClusterKey(secret)");
    }
}
