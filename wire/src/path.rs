//! Paths: one normal form, checked once, then trusted.
//!
//! `/`, `.`, `./` and the empty string are the root. `//` collapses, a trailing slash and `.`
//! segments vanish. `..`, NUL, control characters, segments over 255 bytes, paths over 4,096 bytes
//! or 128 segments, and names with the reserved prefix `___deleted__` are refused. A dot in a name
//! means nothing.

use std::fmt;

use crate::error::{Fault, Kind};
use crate::limits::{DELETED_PREFIX, PATH_DEPTH_MAX, PATH_LEN_MAX, SEGMENT_LEN_MAX};

/// An absolute path in normal form: `/`, or `/a/b` without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePath(String);

impl NamePath {
    /// The root.
    #[must_use]
    pub fn root() -> Self {
        Self("/".into())
    }

    /// Checks and normalises.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`], naming what and why.
    pub fn parse(raw: &str) -> Result<Self, Fault> {
        if raw.len() > PATH_LEN_MAX {
            return Err(invalid(format!("path of {} bytes is longer than {PATH_LEN_MAX}", raw.len())));
        }
        let mut out = String::with_capacity(raw.len() + 1);
        let mut depth = 0;
        for segment in raw.split('/').filter(|segment| !segment.is_empty() && *segment != ".") {
            check_segment(segment)?;
            depth += 1;
            out.push('/');
            out.push_str(segment);
        }
        if depth > PATH_DEPTH_MAX {
            return Err(invalid(format!("path of {depth} segments is deeper than {PATH_DEPTH_MAX}")));
        }
        if out.is_empty() {
            out.push('/');
        }
        Ok(Self(out))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// The names from the root down.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|segment| !segment.is_empty())
    }

    /// The directory above and the last name; `None` for the root.
    #[must_use]
    pub fn split_last(&self) -> Option<(Self, &str)> {
        let (parent, name) = self.0.rsplit_once('/')?;
        if name.is_empty() {
            return None;
        }
        let parent = if parent.is_empty() { "/" } else { parent };
        Some((Self(parent.into()), name))
    }

    /// The last name; empty for the root.
    #[must_use]
    pub fn name(&self) -> &str {
        self.split_last().map_or("", |(_, name)| name)
    }

    /// Whether `self` is `other` or lies below it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        other.is_root() || self.0 == other.0 || self.0.strip_prefix(&other.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for NamePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_segment(segment: &str) -> Result<(), Fault> {
    if segment == ".." {
        return Err(invalid("`..` is not allowed in a path".into()));
    }
    if segment.len() > SEGMENT_LEN_MAX {
        return Err(invalid(format!("name of {} bytes is longer than {SEGMENT_LEN_MAX}", segment.len())));
    }
    if segment.chars().any(char::is_control) {
        return Err(invalid("control characters are not allowed in a path".into()));
    }
    if segment.starts_with(DELETED_PREFIX) {
        return Err(invalid(format!("names starting with {DELETED_PREFIX} are reserved")));
    }
    Ok(())
}

fn invalid(text: String) -> Fault {
    Fault::new(Kind::Invalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> Option<String> {
        NamePath::parse(raw).ok().map(|path| path.0)
    }

    #[test]
    fn spellings_of_one_path_are_one_path() {
        for root in ["", "/", ".", "./", "//", "/./."] {
            assert_eq!(parse(root).as_deref(), Some("/"), "{root:?}");
        }
        for same in ["/a//b", "a/b", "/a/b/", "./a/./b"] {
            assert_eq!(parse(same).as_deref(), Some("/a/b"), "{same:?}");
        }
    }

    #[test]
    fn what_could_escape_or_confuse_is_refused() {
        let long = "x".repeat(SEGMENT_LEN_MAX + 1);
        let deep = "/a".repeat(PATH_DEPTH_MAX + 1);
        let wide = "/abcdefg".repeat(PATH_LEN_MAX / 8 + 1);
        for bad in ["..", "/a/../b", "/a\0b", "/a\nb", "/\u{7f}", "/___deleted__x", &long, &deep, &wide] {
            assert!(NamePath::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["/a..b", "/...", "/a.b/c", "/ä/☃"] {
            assert!(NamePath::parse(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn within_means_at_or_below_and_not_merely_a_longer_name() {
        let dir = NamePath::parse("/a/b").unwrap();
        assert!(NamePath::parse("/a/b").unwrap().is_within(&dir));
        assert!(NamePath::parse("/a/b/c").unwrap().is_within(&dir));
        assert!(!NamePath::parse("/a/bc").unwrap().is_within(&dir));
        assert!(dir.is_within(&NamePath::root()));
    }

    #[test]
    fn the_parent_of_a_first_level_name_is_the_root() {
        let path = NamePath::parse("/a").unwrap();
        assert_eq!(path.split_last(), Some((NamePath::root(), "a")));
        assert_eq!(NamePath::root().split_last(), None);
    }
}
