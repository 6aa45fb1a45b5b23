//! Child processes that die where the suite wants them to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By SIGKILL: at the step that was wanted, or by itself when it was done.
    Killed,
    /// By exiting with this code; 101 after a panic.
    Exited(i32),
    /// By another signal: SIGALRM when it hung, SIGSEGV when it left its memory.
    Signal(i32),
}

impl End {
    /// An error unless the child was killed.
    pub fn killed(self) -> Result<(), String> {
        match self {
            Self::Killed => Ok(()),
            Self::Exited(101) => Err("the child panicked".into()),
            Self::Exited(code) => Err(format!("the child exited with {code}")),
            Self::Signal(libc::SIGALRM) => Err("the child hung".into()),
            Self::Signal(libc::SIGSEGV | libc::SIGBUS) => {
                Err("the child left its memory or wrote where it may only read".into())
            }
            Self::Signal(signal) => Err(format!("the child died of signal {signal}")),
        }
    }
}

/// A running child; it is killed and reaped when this is dropped.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    reaped: bool,
}

/// Seconds after which a child that does not come to an end is taken for hung.
const HANG_SECONDS: u32 = 20;

/// Forks. The child runs `work` and then kills itself; if it hangs, SIGALRM ends it after `seconds`.
///
/// The calling process must have only one thread.
pub fn spawn_for(seconds: u32, work: impl FnOnce()) -> Child {
    // SAFETY: this process has one thread, so the child may go on as an ordinary process.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid > 0 {
        return Child { pid, reaped: false };
    }
    // SAFETY: neither call takes a pointer.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::alarm(seconds);
    }
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        exit(101);
    }
    kill_self()
}

/// [`spawn_for`] a time that no operation needs.
pub fn spawn(work: impl FnOnce()) -> Child {
    spawn_for(HANG_SECONDS, work)
}

/// Ends this process at once without running anything.
pub fn exit(code: i32) -> ! {
    // SAFETY: takes no pointer and does not return.
    unsafe { libc::_exit(code) }
}

fn kill_self() -> ! {
    loop {
        // SAFETY: takes no pointer.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// Runs `work` in a child and waits for its death.
pub fn run(work: impl FnOnce()) -> End {
    spawn(work).wait()
}

impl Child {
    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: takes no pointer; the child is not reaped yet, so the number is still its own.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Waits for its end.
    pub fn wait(mut self) -> End {
        self.reap(0).expect("a blocking wait reaps the child")
    }

    /// Waits until it stops (then there is no end) or ends.
    pub fn wait_for_stop(&mut self) -> Option<End> {
        self.reap(libc::WUNTRACED)
    }

    /// Its end, if it has come.
    pub fn try_wait(&mut self) -> Option<End> {
        self.reap(libc::WNOHANG)
    }

    /// Waits for its end at most this long.
    pub fn wait_at_most(&mut self, limit: Duration) -> Option<End> {
        let start = std::time::Instant::now();
        loop {
            if let Some(end) = self.try_wait() {
                return Some(end);
            }
            if start.elapsed() > limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn reap(&mut self, flags: i32) -> Option<End> {
        let mut status = 0;
        loop {
            // SAFETY: the status is a live integer.
            let pid = unsafe { libc::waitpid(self.pid, &raw mut status, flags) };
            if pid == self.pid {
                break;
            }
            if pid == 0 {
                return None;
            }
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EINTR), "waitpid: {error}");
        }
        if libc::WIFSTOPPED(status) {
            return None;
        }
        self.reaped = true;
        Some(if libc::WIFSIGNALED(status) {
            match libc::WTERMSIG(status) {
                libc::SIGKILL => End::Killed,
                signal => End::Signal(signal),
            }
        } else {
            End::Exited(libc::WEXITSTATUS(status))
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(libc::SIGKILL);
            self.reap(0);
        }
    }
}
