//! Reads single figures out of the Prometheus text format.

/// The sum of all samples of one metric, whatever their labels; `None` when there is none.
///
/// A sample is `name value`, or `name{labels} value`; lines starting with `#` are comments.
#[must_use]
pub fn sum(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| sample(line, name));
    values.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value))
}

fn sample(line: &str, name: &str) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let value = match rest.chars().next()? {
        ' ' | '\t' => rest,
        // A label value may contain `}`, a sample value cannot.
        '{' => rest.rsplit_once('}')?.1,
        _ => return None,
    };
    value.split_whitespace().next()?.parse().ok().filter(|value: &f64| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP written bytes\n# TYPE written counter\n\
        written{shard=\"0\"} 10\nwritten{shard=\"1\",odd=\"a}b\"} 5.5 1700000000\nwritten_total 99\nidle NaN\nbare 7\n";

    #[test]
    fn samples_of_one_name_are_added_over_their_labels() {
        assert_eq!(sum(TEXT, "written"), Some(15.5));
        assert_eq!(sum(TEXT, "bare"), Some(7.0));
    }

    #[test]
    fn a_longer_name_is_another_metric() {
        assert_eq!(sum(TEXT, "writ"), None);
        assert_eq!(sum(TEXT, "written_total"), Some(99.0));
    }

    #[test]
    fn what_is_missing_or_no_number_is_none_and_not_zero() {
        assert_eq!(sum(TEXT, "absent"), None);
        assert_eq!(sum(TEXT, "idle"), None);
    }
}
