//! `Range` and `Content-Range` (RFC 9110 section 14).

use std::ops::Range;

/// What a `Range` field asks of a file of a known length.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// All of it: no field, another unit, a malformed field, or more than one cares to serve in pieces.
    Whole,
    /// These pieces, none empty.
    Parts(Vec<Range<u64>>),
    /// 416.
    Unsatisfiable,
}

/// Reads a `Range` field.
pub(crate) fn parse(field: Option<&str>, len: u64, ranges_max: usize) -> Ranges {
    let Some(list) = field.and_then(|text| text.trim().strip_prefix("bytes=")) else {
        return Ranges::Whole;
    };
    let mut parts = Vec::new();
    for (count, spec) in list.split(',').map(str::trim).filter(|spec| !spec.is_empty()).enumerate() {
        if count == ranges_max {
            return Ranges::Whole;
        }
        match one(spec, len) {
            None => return Ranges::Whole,
            Some(part) if part.is_empty() => {}
            Some(part) => parts.push(part),
        }
    }
    if parts.is_empty() {
        // A suffix of an empty file is all of it; anything else lies beyond its end.
        let all_of_nothing = len == 0 && list.trim_start().starts_with('-') && list.trim() != "-0";
        return if all_of_nothing { Ranges::Whole } else { Ranges::Unsatisfiable };
    }
    // Overlapping pieces that add up to more than the file are not worth an answer larger than it.
    let total: u64 = parts.iter().map(|part| part.end - part.start).fold(0, u64::saturating_add);
    if parts.len() > 1 && total > len { Ranges::Whole } else { Ranges::Parts(parts) }
}

/// One `a-b`, `a-` or `-n`, cut at the file's end; empty when it lies beyond. `None`: malformed.
fn one(spec: &str, len: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        let suffix = number(last)?;
        return Some(len.saturating_sub(suffix)..len);
    }
    let first = number(first)?;
    let end = if last.is_empty() { len } else { number(last)?.saturating_add(1) };
    if !last.is_empty() && end <= first {
        return None;
    }
    let start = first.min(len);
    Some(start..end.min(len).max(start))
}

/// Digits only: `u64::from_str` would take a plus sign. More than fits is "beyond the end".
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The offsets of a request's `Content-Range: bytes a-b/n`, `n` being a length or `*`.
pub(crate) fn content_range(field: &str) -> Option<Range<u64>> {
    let (offsets, complete) = field.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = offsets.split_once('-')?;
    let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
    let fits = complete == "*" || number(complete).is_some_and(|complete| end <= complete);
    (first < end && fits).then_some(first..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(field: &str, len: u64) -> Ranges {
        parse(Some(field), len, 3)
    }

    #[test]
    fn single_ranges_open_ranges_and_suffixes_are_cut_at_the_end() {
        for (field, want) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-4", 2..5),
            ("bytes=5-", 5..10),
            ("bytes=-3", 7..10),
            ("bytes=-99", 0..10),
            ("bytes=9-99999999999999999999999", 9..10),
        ] {
            assert_eq!(parts(field, 10), Ranges::Parts(vec![want]), "{field}");
        }
    }

    #[test]
    fn what_lies_beyond_the_end_cannot_be_satisfied() {
        for field in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(parts(field, 10), Ranges::Unsatisfiable, "{field}");
        }
        assert_eq!(parts("bytes=0-", 0), Ranges::Unsatisfiable);
        assert_eq!(parts("bytes=-5", 0), Ranges::Whole);
    }

    #[test]
    fn malformed_or_greedy_fields_are_answered_whole() {
        for field in
            ["bytes=4-2", "bytes=a-b", "lines=1-2", "bytes=+1-2", "bytes=1", "bytes=0-9,0-9", "bytes=0-0,1-1,2-2,3-3"]
        {
            assert_eq!(parts(field, 10), Ranges::Whole, "{field}");
        }
        assert_eq!(parse(None, 10, 3), Ranges::Whole);
    }

    #[test]
    fn several_ranges_keep_their_order_and_drop_what_is_beyond() {
        assert_eq!(parts("bytes=-1, 0-1,20-", 10), Ranges::Parts(vec![9..10, 0..2]));
    }

    #[test]
    fn a_content_range_names_whole_bytes_within_its_length() {
        assert_eq!(content_range("bytes 5-9/*"), Some(5..10));
        assert_eq!(content_range("bytes 5-9/10"), Some(5..10));
        for bad in ["bytes 5-9/9", "bytes 9-5/*", "bytes */10", "5-9/*", "bytes 0-18446744073709551615/*"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
