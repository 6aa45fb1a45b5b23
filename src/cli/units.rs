//! Sizes, durations and rates: how people write them and how they read them.

use std::time::Duration;

/// Reads `64`, `64B`, `64KiB`, `1M`, `2GB`: K, M, G and T with or without `iB` are powers of 1024, KB, MB, GB and TB
/// powers of 1000. Upper and lower case mean the same.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let expected = "expected a size such as 4096, 64KiB or 1M";
    let number: u64 = number.parse().map_err(|_| expected.to_string())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(expected.to_string()),
    };
    number.checked_mul(factor).ok_or_else(|| "too large".to_string())
}

/// Reads a size that fits 32 bits, see [`parse_size`].
pub(crate) fn parse_size_u32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| "at most 4294967295 bytes".to_string())
}

/// Reads `10s`, `250ms`, `1h30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "expected a duration with its unit, such as 10s, 250ms or 1h30m".to_string())
}

/// Whole milliseconds, rounded up, so that only nothing is nothing.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// `30s`, `1h 30m`.
pub(crate) fn duration_ms(milliseconds: u64) -> String {
    humantime::format_duration(Duration::from_millis(milliseconds)).to_string()
}

/// Reads the length of a measurement: 100 ms to 1 h.
pub(crate) fn parse_run_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&duration) {
        Ok(duration)
    } else {
        Err("a measurement takes from 100ms to 1h".to_string())
    }
}

/// `9,413,002`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 message`, `2,000 messages`.
pub(crate) fn messages(number: u64) -> String {
    counted(number, "message")
}

/// `1 group`, `2,000 groups`.
pub(crate) fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `512 B`, `1.5 MiB`.
#[allow(clippy::cast_precision_loss)] // shown with one digit
pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    let mut scaled = value as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// `9.41 M/s`, from something per second.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        r if r >= 1e9 => format!("{:.2} G/s", r / 1e9),
        r if r >= 1e6 => format!("{:.2} M/s", r / 1e6),
        r if r >= 1e3 => format!("{:.1} k/s", r / 1e3),
        r => format!("{r:.0} /s"),
    }
}

/// `612 MiB/s`, from bytes per second.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // rates are finite and not negative
pub(crate) fn bytes_rate(per_second: f64) -> String {
    format!("{}/s", bytes(per_second as u64))
}

/// `140 ns`, `9.2 µs`, `1.35 ms`, `2.10 s`.
#[allow(clippy::cast_precision_loss)] // shown with three digits
pub(crate) fn nanos(value: u64) -> String {
    let scaled = value as f64;
    match value {
        0..1_000 => format!("{value} ns"),
        1_000..1_000_000 => format!("{:.*} µs", digits(scaled / 1e3), scaled / 1e3),
        1_000_000..1_000_000_000 => format!("{:.*} ms", digits(scaled / 1e6), scaled / 1e6),
        _ => format!("{:.*} s", digits(scaled / 1e9), scaled / 1e9),
    }
}

/// As [`nanos`], from microseconds.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // shown with three digits
pub(crate) fn micros(value: f64) -> String {
    nanos((value * 1e3) as u64)
}

/// Digits behind the point that make three significant ones.
fn digits(value: f64) -> usize {
    match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    }
}

/// `2d 3h`, `4m 51s`, `12s`: the two largest units.
pub(crate) fn seconds(value: u64) -> String {
    let (days, hours, minutes, seconds) =
        (value / 86_400, value / 3_600 % 24, value / 60 % 60, value % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let good = [
            ("0", 0),
            ("64", 64),
            ("64B", 64),
            ("64KiB", 65_536),
            ("64kib", 65_536),
            ("1M", 1 << 20),
            ("2GB", 2_000_000_000),
            ("1T", 1 << 40),
            ("3TB", 3_000_000_000_000),
            ("3 K", 3072),
        ];
        for (text, value) in good {
            assert_eq!(parse_size(text), Ok(value), "{text}");
        }
        for text in ["", "K", "-1", "1.5M", "1Q", "64KiB/s", "99999999999999999999", "17179869184G"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_size_u32("4G").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        for text in ["", "10", "s", "-1s", "1parsec"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(milliseconds(Duration::ZERO), 0);
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_secs(2)), 2000);
        assert_eq!(duration_ms(90_000), "1m 30s");
        assert!(parse_run_duration("1ms").is_err());
        assert!(parse_run_duration("2h").is_err());
    }

    #[test]
    fn for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(rate(9_413_002.0), "9.41 M/s");
        assert_eq!(rate(12.0), "12 /s");
        assert_eq!(nanos(140), "140 ns");
        assert_eq!(nanos(9_200), "9.20 µs");
        assert_eq!(nanos(41_000), "41.0 µs");
        assert_eq!(nanos(1_350_000), "1.35 ms");
        assert_eq!(seconds(291), "4m 51s");
        assert_eq!(seconds(90_000), "1d 1h");
    }
}
