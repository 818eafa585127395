//! Conditional requests (RFC 9110 section 13): which of the five fields decides, and how.

use std::time::UNIX_EPOCH;

use axum::http::HeaderMap;
use axum::http::header::{HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};

use crate::fail::Fail;
use crate::http::etag::Tags;

/// What a file can be compared by.
#[derive(Clone, Debug)]
pub(crate) struct Validators {
    /// Its strong tag, with quotes.
    pub(crate) tag: String,
    /// Unix seconds of its last change.
    pub(crate) modified_s: u64,
}

/// The conditions of one request. Dates that are no dates are ignored, as the RFC asks.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) matching: Option<Tags>,
    pub(crate) none_matching: Option<Tags>,
    modified_since_s: Option<u64>,
    unmodified_since_s: Option<u64>,
    range: Option<IfRange>,
}

#[derive(Debug)]
enum IfRange {
    Tag(String),
    DateS(u64),
    /// Neither, or a weak tag: never true.
    Never,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

impl Conditions {
    /// Reads the fields. A malformed entity tag is refused: ignoring it could overwrite what the client
    /// meant to protect.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Fail> {
        let tags = |name: HeaderName| joined(headers, name).map(|text| Tags::parse(&text)).transpose();
        let date = |name: HeaderName| joined(headers, name).and_then(|text| date_s(&text));
        Ok(Self {
            matching: tags(IF_MATCH)?,
            none_matching: tags(IF_NONE_MATCH)?,
            modified_since_s: date(IF_MODIFIED_SINCE),
            unmodified_since_s: date(IF_UNMODIFIED_SINCE),
            range: joined(headers, IF_RANGE).map(|text| if_range(&text)),
        })
    }

    /// Whether nothing was asked.
    pub(crate) fn is_empty(&self) -> bool {
        self.matching.is_none()
            && self.none_matching.is_none()
            && self.modified_since_s.is_none()
            && self.unmodified_since_s.is_none()
    }

    /// Decides, in the RFC's order of precedence. `reading` says the method is GET or HEAD; `current` is
    /// what is there now.
    pub(crate) fn evaluate(&self, reading: bool, current: Option<&Validators>) -> Verdict {
        if let Some(tags) = &self.matching {
            if !current.is_some_and(|file| tags.match_strongly(&file.tag)) {
                return Verdict::Failed;
            }
        } else if let Some(limit_s) = self.unmodified_since_s
            && current.is_none_or(|file| file.modified_s > limit_s)
        {
            return Verdict::Failed;
        }
        if let Some(tags) = &self.none_matching {
            if current.is_some_and(|file| tags.match_weakly(&file.tag)) {
                return if reading { Verdict::NotModified } else { Verdict::Failed };
            }
        } else if let Some(limit_s) = self.modified_since_s
            && reading
            && current.is_some_and(|file| file.modified_s <= limit_s)
        {
            return Verdict::NotModified;
        }
        Verdict::Proceed
    }

    /// Whether a `Range` is to be honoured.
    pub(crate) fn range_applies(&self, current: &Validators) -> bool {
        match &self.range {
            None => true,
            Some(IfRange::Tag(tag)) => *tag == current.tag,
            Some(IfRange::DateS(date_s)) => *date_s == current.modified_s,
            Some(IfRange::Never) => false,
        }
    }
}

fn if_range(text: &str) -> IfRange {
    match date_s(text) {
        Some(seconds) => IfRange::DateS(seconds),
        None if text.starts_with('"') => IfRange::Tag(text.to_owned()),
        None => IfRange::Never,
    }
}

fn date_s(text: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// All lines of a field as one. Bytes that are not text match no tag, which fails on the safe side.
fn joined(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let mut lines = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let first = lines.next()?.into_owned();
    Some(lines.fold(first, |all, line| all + "," + &line))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const OLD_S: u64 = 784_111_777;

    fn verdict(fields: &[(&'static str, &str)], reading: bool, exists: bool) -> Verdict {
        let current = Validators { tag: "\"now\"".into(), modified_s: OLD_S };
        conditions(fields).evaluate(reading, exists.then_some(&current))
    }

    fn conditions(fields: &[(&'static str, &str)]) -> Conditions {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        Conditions::of(&headers).unwrap()
    }

    #[test]
    fn tags_decide_for_writes_and_reads() {
        use Verdict::{Failed, NotModified, Proceed};
        for (field, value, reading, exists, want) in [
            ("if-match", "\"now\"", false, true, Proceed),
            ("if-match", "\"old\"", false, true, Failed),
            ("if-match", "*", false, false, Failed),
            ("if-match", "*", false, true, Proceed),
            ("if-match", "W/\"now\"", false, true, Failed),
            ("if-none-match", "*", false, true, Failed),
            ("if-none-match", "*", false, false, Proceed),
            ("if-none-match", "\"old\", W/\"now\"", true, true, NotModified),
            ("if-none-match", "\"old\"", true, true, Proceed),
            ("if-none-match", "\"now\"", false, true, Failed),
        ] {
            assert_eq!(verdict(&[(field, value)], reading, exists), want, "{field}: {value}");
        }
    }

    #[test]
    fn dates_decide_only_where_no_tag_does() {
        use Verdict::{Failed, NotModified, Proceed};
        let newer = "Sun, 06 Nov 1994 08:49:38 GMT";
        let older = "Sun, 06 Nov 1994 08:49:36 GMT";
        assert_eq!(verdict(&[("if-modified-since", OLD)], true, true), NotModified);
        assert_eq!(verdict(&[("if-modified-since", older)], true, true), Proceed);
        assert_eq!(verdict(&[("if-modified-since", OLD)], false, true), Proceed);
        assert_eq!(verdict(&[("if-unmodified-since", older)], true, true), Failed);
        assert_eq!(verdict(&[("if-unmodified-since", newer)], true, true), Proceed);
        assert_eq!(verdict(&[("if-match", "\"now\""), ("if-unmodified-since", older)], true, true), Proceed);
        assert_eq!(verdict(&[("if-none-match", "\"x\""), ("if-modified-since", newer)], true, true), Proceed);
        assert_eq!(verdict(&[("if-modified-since", "yesterday")], true, true), Proceed);
    }

    #[test]
    fn a_range_is_honoured_only_for_the_very_same_bytes() {
        let current = Validators { tag: "\"now\"".into(), modified_s: OLD_S };
        for (value, want) in
            [("\"now\"", true), ("\"old\"", false), ("W/\"now\"", false), (OLD, true), ("rubbish", false)]
        {
            assert_eq!(conditions(&[("if-range", value)]).range_applies(&current), want, "{value}");
        }
        assert!(conditions(&[]).range_applies(&current));
    }
}
