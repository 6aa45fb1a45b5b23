//! SIGINT and SIGTERM: a command that has something to clean up notes the signal, cleans up, and then ends by it.

use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};

use super::exit::{Failure, Outcome};

/// The signal that came, or 0.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    // Relaxed: the number is all that is passed on.
    CAUGHT.store(signal, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP are noted instead of ending the process. Interrupted system calls return.
pub(crate) fn catch() -> Outcome {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        set(signal, note as *const () as libc::sighandler_t)
            .map_err(|error| Failure::system("catch signals", error))?;
    }
    Ok(())
}

/// The signal that came, if one did.
pub(crate) fn caught() -> Option<i32> {
    // Relaxed: see `note`.
    Some(CAUGHT.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// An error as soon as a signal came.
pub(crate) fn check() -> Outcome {
    caught().map_or(Ok(()), |signal| Err(Failure::Signal(signal)))
}

/// Ends the process by this signal, so that its parent sees why.
pub(crate) fn die(signal: i32) -> ExitCode {
    if set(signal, libc::SIG_DFL).is_ok() {
        // SAFETY: raise takes no pointer.
        unsafe { libc::raise(signal) };
    }
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

fn set(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // SAFETY: `action` is initialised and outlives the call, the old action is not asked for, and the handler only
    // stores to an atomic, which is allowed in a signal handler.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
