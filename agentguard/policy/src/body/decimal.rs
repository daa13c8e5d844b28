//! Numbers as JSON writes them (RFC 8259 section 6), exactly: their digits are moved, never rounded.

/// Fraction digits of Cedar's `decimal`, which is a number of ten-thousandths in 64 bits.
const FRACTION: i64 = 4;
/// Digits that 64 bits can need.
const MAX_DIGITS: i64 = 19;

/// `digits` × 10^`exponent`, negated if `negative`; `digits` without zeros at its ends, empty for 0.
struct Exact {
    negative: bool,
    digits: String,
    exponent: i64,
}

/// The number in Cedar's notation; `None` if it is no number or not one that a `decimal` can be.
pub(crate) fn decimal(text: &str) -> Option<String> {
    let units = units(text)?;
    let magnitude = units.unsigned_abs();
    let sign = if units < 0 { "-" } else { "" };
    let fraction = format!("{:04}", magnitude % 10_000);
    let kept = fraction.trim_end_matches('0').len().max(1);
    Some(format!(
        "{sign}{}.{}",
        magnitude / 10_000,
        &fraction[..kept]
    ))
}

/// The number in ten-thousandths; `None` as with [`decimal`].
pub(crate) fn units(text: &str) -> Option<i64> {
    Exact::parse(text)?.scaled(FRACTION)
}

/// The number, if it is whole.
pub(super) fn long(text: &str) -> Option<i64> {
    Exact::parse(text)?.scaled(0)
}

/// Where the number at the start of `text` ends; `None` if there is none.
pub(super) fn end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        let rest = bytes[from..].iter();
        from + rest.take_while(|byte| byte.is_ascii_digit()).count()
    };
    let start = usize::from(bytes.first() == Some(&b'-'));
    let mut at = digits(start);
    if at == start || bytes[start] == b'0' && at > start + 1 {
        return None;
    }
    if bytes.get(at) == Some(&b'.') {
        let fraction = at + 1;
        at = digits(fraction);
        if at == fraction {
            return None;
        }
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let exponent = at + 1 + sign;
        if exponent > bytes.len() {
            return None;
        }
        at = digits(exponent);
        if at == exponent {
            return None;
        }
    }
    Some(at)
}

impl Exact {
    fn parse(text: &str) -> Option<Self> {
        if end(text)? != text.len() {
            return None;
        }
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        let kept = digits.trim_end_matches('0');
        if kept.is_empty() {
            return Some(Self {
                negative: false,
                digits: String::new(),
                exponent: 0,
            });
        }
        // An exponent beyond 64 bits belongs to no number that fits.
        let exponent: i64 = exponent
            .strip_prefix('+')
            .unwrap_or(exponent)
            .parse()
            .ok()?;
        let moved =
            i64::try_from(digits.len() - kept.len()).ok()? - i64::try_from(fraction.len()).ok()?;
        Some(Self {
            negative,
            digits: kept.to_owned(),
            exponent: exponent.checked_add(moved)?,
        })
    }

    /// The number × 10^`by`, if that is whole and fits.
    fn scaled(&self, by: i64) -> Option<i64> {
        if self.digits.is_empty() {
            return Some(0);
        }
        let zeros = self.exponent.checked_add(by)?;
        let length = i64::try_from(self.digits.len()).ok()?.checked_add(zeros)?;
        if zeros < 0 || length > MAX_DIGITS {
            return None;
        }
        let power = 10_i128.checked_pow(u32::try_from(zeros).ok()?)?;
        let magnitude = self.digits.parse::<i128>().ok()? * power;
        i64::try_from(if self.negative { -magnitude } else { magnitude }).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_exact_or_none() {
        let cases = [
            ("400", Some("400.0")),
            ("399.99", Some("399.99")),
            ("0", Some("0.0")),
            ("-0", Some("0.0")),
            ("-0.5", Some("-0.5")),
            ("-1200", Some("-1200.0")),
            ("1.50000", Some("1.5")),
            ("1e2", Some("100.0")),
            ("1E+2", Some("100.0")),
            ("12345e-4", Some("1.2345")),
            ("123456e-5", None),
            ("0.00001", None),
            ("399.99999", None),
            ("0e999999999999999999999", Some("0.0")),
            ("1e400", None),
            ("1e999999999999999999999", None),
            ("1e-999999999999999999999", None),
            ("922337203685477.5807", Some("922337203685477.5807")),
            ("922337203685477.5808", None),
            ("-922337203685477.5808", Some("-922337203685477.5808")),
            (
                "10000000000000000000000000000000000000000e-38",
                Some("100.0"),
            ),
            ("", None),
            ("-", None),
            ("+1", None),
            ("01", None),
            ("-01", None),
            ("1.", None),
            (".5", None),
            ("1e", None),
            ("1e+", None),
            ("0x10", None),
            ("1_000", None),
            ("1,5", None),
            (" 1", None),
            ("1 ", None),
            ("NaN", None),
            ("Infinity", None),
            ("१", None),
        ];
        for (text, expected) in cases {
            assert_eq!(decimal(text).as_deref(), expected, "{text}");
        }
        let longs = [
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("1.0", Some(1)),
            ("1e3", Some(1000)),
            ("1.5", None),
        ];
        for (text, expected) in longs {
            assert_eq!(long(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_cedars_own_reading(units in any::<i64>(), shift in 0i64..4) {
            let plain = format!("{}e-{}", i128::from(units) * 10_i128.pow(shift as u32), 4 + shift);
            let ours = decimal(&plain).unwrap();
            let expression = format!("decimal(\"{ours}\")");
            let expected = format!("{}{}.{:04}", if units < 0 { "-" } else { "" }, units.unsigned_abs() / 10_000, units.unsigned_abs() % 10_000);
            let same = format!("{expression} == decimal(\"{expected}\")");
            let uid = || "A::\"a\"".parse().unwrap();
            let empty = cedar_policy::Context::empty();
            let request = cedar_policy::Request::new(uid(), uid(), uid(), empty, None).unwrap();
            let value = cedar_policy::eval_expression(
                &request,
                &cedar_policy::Entities::empty(),
                &same.parse().unwrap(),
            );
            prop_assert_eq!(value.unwrap(), cedar_policy::EvalResult::Bool(true));
        }

        #[test]
        fn nothing_panics(text in "[-+]?[0-9.eE+-]{0,40}|\\PC{0,12}") {
            let _ = decimal(&text);
            let _ = long(&text);
        }
    }
}
