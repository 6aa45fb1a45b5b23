//! Places in a queue, as they are typed: `first`, `new`, a sequence, a time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringmain_client::StartAt;

use crate::cli::units::parse_duration;

const EXPECTED: &str = "expected first, new or a sequence, or a time such as -10m or \
                        2026-01-31T08:00:00Z";

/// A place in a queue. Times are taken when the command starts.
pub(super) fn parse_start(text: &str) -> Result<StartAt, String> {
    match text {
        "first" => return Ok(StartAt::First),
        "new" => return Ok(StartAt::New),
        _ => {}
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(StartAt::Sequence).map_err(|_| EXPECTED.to_string());
    }
    parse_time(text, SystemTime::now()).map(StartAt::Time)
}

/// A moment in nanoseconds since 1970: a duration ago, or RFC 3339.
fn parse_time(text: &str, now: SystemTime) -> Result<u64, String> {
    let time = match text.strip_prefix('-') {
        Some(ago) => {
            let ago = parse_duration(ago).map_err(|_| EXPECTED.to_string())?;
            now.checked_sub(ago).unwrap_or(UNIX_EPOCH)
        }
        None => parse_rfc3339(text).ok_or(EXPECTED)?,
    };
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// With `Z` or an offset such as `+02:00`.
fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let text = text.to_ascii_uppercase();
    if text.ends_with('Z') {
        return humantime::parse_rfc3339(&text).ok();
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let number = |digits: &str, most: u64| -> Option<u64> {
        let is_number = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|number| is_number && *number <= most)
    };
    let distance = Duration::from_secs(number(hours, 23)? * 3600 + number(minutes, 59)? * 60);
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    match offset.as_bytes()[0] {
        b'+' => local.checked_sub(distance),
        b'-' => local.checked_add(distance),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_as_people_write_them() {
        assert_eq!(parse_start("first"), Ok(StartAt::First));
        assert_eq!(parse_start("new"), Ok(StartAt::New));
        assert_eq!(parse_start("17"), Ok(StartAt::Sequence(17)));
        let second = 1_000_000_000;
        for (text, seconds) in [
            ("1970-01-01T00:01:00Z", 60),
            ("2001-09-09t01:46:40z", 1_000_000_000),
            ("2001-09-09T03:46:40+02:00", 1_000_000_000),
            ("2001-09-08T20:16:40-05:30", 1_000_000_000),
        ] {
            assert_eq!(parse_start(text), Ok(StartAt::Time(seconds * second)), "{text}");
        }
        let half = parse_start("2001-09-09T01:46:40.5+00:00");
        assert_eq!(half, Ok(StartAt::Time(1_000_000_000 * second + second / 2)));
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(parse_time("-10m", now), Ok(400 * second));
        assert_eq!(parse_time("-1h", now), Ok(0));
        assert_eq!(parse_time("9999-01-01T00:00:00Z", now), Ok(u64::MAX));
        for text in [
            "",
            "-",
            "-10",
            "-1",
            "last",
            "10m",
            "yesterday",
            "2001-09-09",
            "2001-09-09T01:46:40",
            "2001-09-09T01:46:40+2:00",
            "2001-09-09T01:46:40+24:00",
            "2001-13-09T01:46:40Z",
            "2001-09-09T01:46:40ä02:00",
            "18446744073709551616",
            "+02:00",
            "-é",
        ] {
            assert_eq!(parse_start(text), Err(EXPECTED.to_string()), "{text}");
        }
    }
}
