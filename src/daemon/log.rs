//! Lines on stderr. Few, and never a reason to fail.

use std::fmt::Arguments;
use std::io::Write;

/// Writes one line in one call; a closed stderr is ignored.
pub(super) fn line(text: Arguments<'_>) {
    let line = format!("ringmain: {text}\n");
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

macro_rules! log {
    ($($part:tt)*) => { $crate::daemon::log::line(format_args!($($part)*)) };
}
pub(super) use log;
