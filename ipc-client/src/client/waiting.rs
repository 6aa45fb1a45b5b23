//! The waiting loop of all blocking forms: asks the policy, looks at the ring, sleeps, and keeps house meanwhile.

use std::time::Duration;

use super::attachment::Attachment;
use crate::ring::{self, HandleLine, Park, sleep_once};
use crate::sys::clock::monotonic_ns;
use crate::wait::{SPIN_ALONE_NS, Step, Wait};

/// Longest sleep at a stretch: after it the handle looks again, whatever became of its wake-up.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// How often a process that cannot issue membarrier looks at a ring that relies on it.
const POLL: Duration = Duration::from_millis(1);

/// What a waiting loop needs to know about the ring side that waits.
pub(crate) trait Side {
    /// Position at which it waits.
    fn position(&self) -> u64;
    /// Where it sleeps.
    fn own_park(&self) -> &Park;
    /// Its line.
    fn line(&self) -> &HandleLine;
    /// Its index.
    fn handle(&self) -> u8;
    /// Whether one more of its kind could go on at once.
    fn more(&mut self) -> bool;
}

/// Both ends of a ring have the same methods; only what `more` means differs.
macro_rules! side {
    ($end:ty, |$ring:ident| $more:expr) => {
        impl Side for $end {
            fn position(&self) -> u64 {
                Self::position(self)
            }
            fn own_park(&self) -> &Park {
                Self::own_park(self)
            }
            fn line(&self) -> &HandleLine {
                Self::line(self)
            }
            fn handle(&self) -> u8 {
                Self::handle(self)
            }
            fn more(&mut self) -> bool {
                let $ring = self;
                $more
            }
        }
    };
}

// Whoever frees a slot wakes all producers.
side!(ring::Producer, |_ring| false);
side!(ring::Consumer, |ring| ring.has_message());

/// Why a wait ended without a result of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The time is over.
    Timeout,
    /// The daemon does not know this handle any more.
    Lost,
}

/// Looks with `attempt` until it says that it found something, and where it has put that is its own affair. `None` as
/// time-out waits without bound. Begins after a look that found nothing: a time-out of zero does not look again.
#[inline(never)]
pub(crate) fn wait_for<R: Side>(
    attachment: &mut Attachment,
    ring: &mut R,
    timeout: Option<Duration>,
    mut attempt: impl FnMut(&mut R, &mut Attachment) -> bool,
) -> Result<(), Stop> {
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(if attachment.is_lost() { Stop::Lost } else { Stop::Timeout });
    }
    let mut wait = attachment.tuner.begin();
    let mut told = false;
    let result = loop {
        let step = wait.next(&attachment.tuner);
        match step {
            Step::Look => {}
            Step::Pause => std::hint::spin_loop(),
            Step::Clock | Step::Yield => {
                if step == Step::Yield {
                    wait.clock(monotonic_ns(), Step::Clock, &mut attachment.tuner);
                    std::thread::yield_now();
                }
                wait.clock(monotonic_ns(), step, &mut attachment.tuner);
            }
            Step::Sleep => {
                // A look may have been long ago: the time that is left is counted from now.
                wait.clock(monotonic_ns(), Step::Clock, &mut attachment.tuner);
                tell(&mut told, ring, &wait);
                let bound = left(&wait, timeout).min(SLEEP_MAX);
                if sleep(attachment, ring, bound, &mut attempt) {
                    break Ok(());
                }
                wait.clock(monotonic_ns(), step, &mut attachment.tuner);
            }
        }
        if attempt(ring, attachment) {
            break Ok(());
        }
        if !matches!(step, Step::Look | Step::Pause) {
            if left(&wait, timeout).is_zero() {
                break Err(Stop::Timeout);
            }
            if wait.elapsed_ns() > SPIN_ALONE_NS {
                tell(&mut told, ring, &wait);
            }
            if attachment.keep_house(wait.now_ns()) {
                break Err(Stop::Lost);
            }
        }
    };
    if told {
        ring.line().clear_waiting();
    }
    if result.is_ok() {
        attachment.tuner.ended(&wait, monotonic_ns);
        pass_on(attachment, ring);
    }
    result
}

fn left(wait: &Wait, timeout: Option<Duration>) -> Duration {
    match timeout {
        None => Duration::MAX,
        Some(timeout) => timeout.saturating_sub(Duration::from_nanos(wait.elapsed_ns())),
    }
}

fn sleep<R: Side>(
    attachment: &mut Attachment,
    ring: &mut R,
    bound: Duration,
    attempt: &mut impl FnMut(&mut R, &mut Attachment) -> bool,
) -> bool {
    if !attachment.kernel.may_park() {
        std::thread::sleep(POLL.min(bound));
        return false;
    }
    let park = ring.own_park().clone();
    let handle = ring.handle();
    let kernel = attachment.kernel;
    let found =
        sleep_once(&park, handle, &kernel, Some(bound), || attempt(ring, attachment).then_some(()));
    found.is_some()
}

/// After a look of a consumer that found nothing. It may have freed slots all the same, those of messages that were
/// never finished, and whoever waits for room is told.
#[inline]
pub(crate) fn found_nothing(ring: &ring::Consumer, attachment: &mut Attachment) {
    let position = ring.position();
    if position != attachment.looked_at {
        attachment.looked_at = position;
        attachment.wake_peers(ring.peer_park(), u32::MAX);
    }
}

/// A message that could not be given out because an earlier one was still being written has spent its wake-up in vain.
/// So whoever had to wait for a message and got one wakes the next sleeper if there is more.
pub(crate) fn pass_on<R: Side>(attachment: &mut Attachment, ring: &mut R) {
    if ring.own_park().any_sleeper() && ring.more() {
        attachment.wake_peers(ring.own_park(), 1);
    }
}

/// Before a handle goes: nobody is to wake it any more.
pub(crate) fn leave<R: Side>(ring: &R) {
    ring.own_park().retract(ring.handle());
    ring.line().set_doorbell(0, 0);
    ring.line().clear_waiting();
}

/// Writes into the handle line that it waits, for `queue info`.
fn tell<R: Side>(told: &mut bool, ring: &R, wait: &Wait) {
    if !std::mem::replace(told, true) {
        ring.line().set_waiting(ring.position(), wait.started_ns().max(1));
    }
}
