//! Times as text: HTTP dates for header fields, RFC 3339 for JSON, as Go's `time.Time` writes itself.

use std::time::{Duration, UNIX_EPOCH};

/// `Sun, 06 Nov 1994 08:49:37 GMT`
pub(crate) fn http(unix_ms: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds(unix_ms)))
}

/// `1994-11-06T08:49:37.5Z`: no trailing zeros, no fraction when there is none.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let seconds = seconds(unix_ms);
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let millis = unix_ms % 1000;
    if millis != 0 {
        text += format!(".{millis:03}").trim_end_matches('0');
    }
    text + "Z"
}

/// Whole seconds, never beyond what an HTTP date can say (year 9999).
pub(crate) fn seconds(unix_ms: u64) -> u64 {
    (unix_ms / 1000).min(253_402_300_799)
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar. Years are
/// counted from March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_calendars_agree_on_known_days() {
        for (unix_s, want, http_want) in [
            (0, "1970-01-01T00:00:00Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "1994-11-06T08:49:37Z", "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "2000-02-29T00:00:00Z", "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "2024-02-29T23:59:59Z", "Thu, 29 Feb 2024 23:59:59 GMT"),
            (4_107_542_400, "2100-03-01T00:00:00Z", "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(rfc3339(unix_s * 1000), want);
            assert_eq!(http(unix_s * 1000), http_want);
        }
    }

    #[test]
    fn fractions_lose_their_zeros_and_nothing_overflows() {
        assert_eq!(rfc3339(1_500), "1970-01-01T00:00:01.5Z");
        assert_eq!(rfc3339(1_050), "1970-01-01T00:00:01.05Z");
        assert_eq!(http(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert!(rfc3339(u64::MAX).starts_with("9999-12-31T"));
    }
}
