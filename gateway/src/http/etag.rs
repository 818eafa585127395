//! Entity tags: strong, of identity, version and length. The version counts changes of the chunk list
//! and attributes, the length tells appends apart: two equal tags mean equal bytes.

use wire::InodeId;
use wire::namespace::Attr;

use crate::fail::Fail;

/// What a tag of ours stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) inode: InodeId,
    pub(crate) version: u64,
    pub(crate) len: u64,
}

impl Identity {
    pub(crate) fn of(attr: &Attr) -> Self {
        Self { inode: attr.inode, version: attr.version, len: attr.len }
    }

    /// The tag, quotes included.
    pub(crate) fn tag(self) -> String {
        format!("\"{:x}-{:x}-{:x}\"", self.inode.0, self.version, self.len)
    }
}

/// The tag of a file.
pub(crate) fn of(attr: &Attr) -> String {
    Identity::of(attr).tag()
}

/// The value of `If-Match` or `If-None-Match`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tags {
    /// `*`
    Any,
    /// Each with its quotes; the flag says it was weak.
    List(Vec<(bool, String)>),
}

impl Tags {
    /// Parses the values of a field, joined by commas.
    pub(crate) fn parse(text: &str) -> Result<Self, Fail> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let mut tags = Vec::new();
        let mut rest = text.trim_start_matches([' ', '\t', ',']);
        while !rest.is_empty() {
            let (weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |quoted| (true, quoted));
            let end = quoted.strip_prefix('"').and_then(|inner| inner.find('"'));
            let Some(end) = end else {
                return Err(Fail::invalid("an entity tag must be quoted, as in \"abc\""));
            };
            let (tag, after) = quoted.split_at(end + 2);
            tags.push((weak, tag.to_owned()));
            rest = after.trim_start_matches([' ', '\t', ',']);
        }
        Ok(Self::List(tags))
    }

    /// Strong comparison, for `If-Match`: a weak tag matches nothing.
    pub(crate) fn match_strongly(&self, tag: &str) -> bool {
        self.matches(|weak, other| !weak && other == tag)
    }

    /// Weak comparison, for `If-None-Match`.
    pub(crate) fn match_weakly(&self, tag: &str) -> bool {
        self.matches(|_, other| other == tag)
    }

    fn matches(&self, same: impl Fn(bool, &str) -> bool) -> bool {
        match self {
            Self::Any => true,
            Self::List(tags) => tags.iter().any(|(weak, tag)| same(*weak, tag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_tags_are_taken_apart() {
        let tags = Tags::parse("\"a\", W/\"b\" ,\"c,d\"").unwrap();
        assert!(tags.match_strongly("\"a\"") && tags.match_strongly("\"c,d\""));
        assert!(!tags.match_strongly("\"b\"") && tags.match_weakly("\"b\""));
        assert!(!tags.match_weakly("\"c\""));
        assert_eq!(Tags::parse(" * ").unwrap(), Tags::Any);
    }

    #[test]
    fn a_tag_without_quotes_is_refused_and_not_ignored() {
        for bad in ["abc", "\"abc", "\"a\" b", "W/abc"] {
            assert!(Tags::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn another_inode_version_or_length_is_another_tag() {
        let base = Identity { inode: InodeId(10), version: 11, len: 12 };
        assert_eq!(base.tag(), "\"a-b-c\"");
        for other in
            [Identity { inode: InodeId(1), ..base }, Identity { version: 1, ..base }, Identity { len: 1, ..base }]
        {
            assert_ne!(other.tag(), base.tag());
        }
    }
}
