//! Sizes as people write them: `4096`, `64K`, `64M`, `1GiB`, `1.5G`.

/// Bytes; K, M, G and T are powers of 1024, with or without `B` or `iB`, in either case.
///
/// # Errors
///
/// A sentence for the user.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write 4096, 64K, 64M or 1G");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_not_a_number| wrong())?;
    let bytes = whole.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))?;
    bytes.checked_add(fraction_bytes(fraction, shift).ok_or_else(wrong)?).ok_or_else(|| format!("{text} is too large"))
}

/// `.5` of a unit of `1 << shift` bytes, rounded down; at most nine digits.
fn fraction_bytes(digits: &str, shift: u32) -> Option<u64> {
    if digits.is_empty() {
        return Some(0);
    }
    let scale = 10_u128.checked_pow(u32::try_from(digits.len()).ok().filter(|len| *len <= 9)?)?;
    let digits: u128 = digits.parse().ok()?;
    u64::try_from((digits << shift) / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_spellings_are_powers_of_1024() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64M", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1GB", 1 << 30),
            ("1.5G", 3 << 29),
            ("0.25K", 256),
            ("2T", 2 << 40),
            ("7b", 7),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_and_never_wraps() {
        for text in ["", "M", "-1", "1X", "1.2.3M", "1,5G", "0x10", "99999999999999999999", "16777216T", ".5M", "1e3"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
