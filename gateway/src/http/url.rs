//! Paths and queries of request targets: percent-decoded exactly once, then checked.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use wire::NamePath;

use crate::fail::Fail;

/// Everything but what RFC 3986 calls unreserved. A colon too: `a:b` as a relative link would be a scheme.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &SEGMENT.remove(b'/');

/// A path below `/fs`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// What it names.
    pub(crate) path: NamePath,
    /// It ended in a slash, and so means a directory.
    pub(crate) slash: bool,
}

/// Decodes what follows `/fs` in a request target.
pub(crate) fn target(raw: &str) -> Result<Target, Fail> {
    let text = decode(raw)?;
    let path = name_path(&text)?;
    Ok(Target { slash: path.is_root() || text.ends_with('/'), path })
}

/// Checks a path that came decoded: from JSON, or from a query.
pub(crate) fn name_path(text: &str) -> Result<NamePath, Fail> {
    NamePath::parse(text).map_err(|fault| Fail::invalid(fault.text))
}

/// A path as part of a URL.
pub(crate) fn encode_path(path: &NamePath) -> String {
    utf8_percent_encode(path.as_str(), PATH).to_string()
}

/// A single name, or a value of a query, as part of a URL.
pub(crate) fn encode_segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

fn decode(raw: &str) -> Result<String, Fail> {
    let escapes_are_whole = raw.split('%').skip(1).all(|rest| {
        let bytes = rest.as_bytes();
        bytes.len() >= 2 && bytes[..2].iter().all(u8::is_ascii_hexdigit)
    });
    if !escapes_are_whole {
        return Err(Fail::invalid("`%` must be followed by two hexadecimal digits"));
    }
    match percent_decode_str(raw).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(Fail::invalid("a path must be UTF-8")),
    }
}

/// A query string, decoded.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c`, `+` standing for a space.
    pub(crate) fn parse(raw: Option<&str>) -> Result<Self, Fail> {
        let pairs = raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(&key.replace('+', " "))?, decode(&value.replace('+', " "))?))
        });
        Ok(Self(decoded.collect::<Result<_, Fail>>()?))
    }

    /// The first value of a key; empty when the key stands alone.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The first value of a key, or nothing when it is absent or empty: as the original saw it.
    pub(crate) fn filled(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// Whether a switch is on: present, and not `false` or `0`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value, "false" | "0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_once() {
        let path = |raw| target(raw).unwrap().path.as_str().to_owned();
        assert_eq!(path("/a%20b"), "/a b");
        assert_eq!(path("/a%2Fb"), "/a/b");
        assert_eq!(path("/%252e%252e"), "/%2e%2e");
        assert_eq!(path("/100%25"), "/100%");
        assert_eq!(path("/a+b"), "/a+b");
    }

    #[test]
    fn a_trailing_slash_means_a_directory() {
        assert!(target("").unwrap().slash);
        assert!(target("/").unwrap().slash);
        assert!(target("/a/").unwrap().slash);
        assert!(!target("/a").unwrap().slash);
    }

    #[test]
    fn what_could_leave_the_tree_is_refused_however_it_is_spelled() {
        let long = format!("/{}", "x".repeat(256));
        for raw in
            ["/..", "/a/../b", "/%2e%2e/x", "/.%2E", "/a%2f..%2fb", "/%00", "/a%0ab", "/%zz", "/%2", "/%ff", &long]
        {
            assert!(target(raw).is_err(), "{raw}");
        }
    }

    #[test]
    fn what_was_encoded_decodes_to_itself() {
        for name in ["a b", "ä:☃", "100%", "<&\"'>", "a?b#c", "javascript:x"] {
            let path = NamePath::parse(name).unwrap();
            assert_eq!(target(&encode_path(&path)).unwrap().path, path);
            assert!(!encode_segment(name).contains([':', '<', '"', '?', '#', ' ']));
        }
    }

    #[test]
    fn a_query_keeps_the_difference_between_absent_and_empty() {
        let query = Query::parse(Some("mkdir&path=%2Fa+b&recursive=false&x=")).unwrap();
        assert_eq!(query.get("mkdir"), Some(""));
        assert_eq!(query.get("path"), Some("/a b"));
        assert_eq!(query.filled("x"), None);
        assert!(query.flag("mkdir") && !query.flag("recursive") && !query.flag("absent"));
    }
}
