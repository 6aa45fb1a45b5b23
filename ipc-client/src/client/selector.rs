//! Waiting for many queues at once.
//!
//! All queues of a selector share one doorbell. A queue is either *awake* (its consumer's sleeper bit is clear, the
//! selector looks at it itself) or *armed* (the bit is set, and its handle line names the doorbell). Before it sleeps the selector arms
//! every queue that it has found empty: bits first, one barrier for all of them, then another look at each. So a
//! producer that publishes later sees the bit and rings, and what was published earlier is seen by the second look.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Client;
use super::bells::LeasedBell;
use super::connection::Inner;
use super::consumer::Consumer;
use super::error::ClientError;
use crate::layout::doorbell::QUEUES_MAX;
use crate::ring::Kernel;

/// Longest sleep at a stretch: after it all queues are looked at, whatever became of their rings.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// How often a process that cannot issue membarrier looks at its queues.
const POLL: Duration = Duration::from_millis(1);

/// Names a queue of a [`Selector`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u32);

/// Waits for messages of many queues at once, in this thread or through `poll` and its relatives.
///
/// Readiness is level-triggered: a queue that still has a message is reported again. A queue that was closed or damaged
/// is ready as well, so that receiving from it says so. With several consumers on a queue a ready one may find it empty.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ringmain_client::{Client, Selector};
///
/// let client = Client::connect_default()?;
/// let mut selector = Selector::new(&client)?;
/// let orders = selector.add(client.consumer("orders")?)?;
/// let returns = selector.add(client.consumer("returns")?)?;
/// let mut buffer = Vec::new();
/// loop {
///     for token in selector.wait(None)? {
///         let name = if token == orders { "order" } else { "return" };
///         if let Some(consumer) = selector.get_mut(token) {
///             while consumer.try_receive(&mut buffer).is_ok() {
///                 println!("{name}: {} bytes", buffer.len());
///             }
///         }
///     }
/// #   if returns == orders { return Ok(()) }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Selector {
    client: Arc<Inner>,
    bell: LeasedBell,
    members: Vec<Option<Member>>,
    /// Those that are not armed, each once.
    awake: Vec<u32>,
    /// Members whose ring relies on a barrier that this process cannot have.
    polled: usize,
    /// When all members were looked at last.
    looked_at_all: Instant,
}

#[derive(Debug)]
struct Member {
    consumer: Consumer,
    armed: bool,
}

impl Member {
    fn is_ready(&self) -> bool {
        self.consumer.attachment.is_lost() || self.consumer.ring.has_message()
    }

    fn may_park(&self) -> bool {
        self.consumer.attachment.kernel.may_park()
    }

    fn announce(&mut self) {
        self.armed = true;
        let ring = &self.consumer.ring;
        ring.own_park().announce(ring.handle());
    }

    fn retract(&mut self) {
        if std::mem::take(&mut self.armed) {
            let ring = &self.consumer.ring;
            ring.own_park().retract(ring.handle());
        }
    }
}

impl Selector {
    /// Most queues of one selector.
    pub const QUEUES_MAX: usize = QUEUES_MAX;

    /// A selector without queues.
    ///
    /// # Errors
    /// No memory or descriptor is left, or the daemon refuses or does not answer.
    pub fn new(client: &Client) -> Result<Self, ClientError> {
        let client = Arc::clone(client.inner());
        let bell = LeasedBell::new(&client)?;
        Ok(Self {
            client,
            bell,
            members: Vec::new(),
            awake: Vec::new(),
            polled: 0,
            looked_at_all: Instant::now(),
        })
    }

    /// Queues in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.iter().flatten().count()
    }

    /// Whether it has no queue.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.iter().all(Option::is_none)
    }

    /// Adds a queue through its consumer. It counts as awake: the next wait looks at it.
    ///
    /// # Errors
    /// The daemon refuses or does not answer; [`Self::QUEUES_MAX`] queues are in it. The consumer is dropped then.
    pub fn add(&mut self, consumer: Consumer) -> Result<Token, ClientError> {
        let free = self.members.iter().position(Option::is_none).unwrap_or(self.members.len());
        let bit = u32::try_from(free).unwrap_or(u32::MAX);
        if free >= QUEUES_MAX {
            let text = format!("a selector takes at most {QUEUES_MAX} queues");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text).into());
        }
        let handle = consumer.attachment.key;
        self.bell.bind(handle)?;
        consumer.ring.line().set_doorbell(self.bell.id(), bit);
        let member = Member { consumer, armed: false };
        self.polled += usize::from(!member.may_park());
        if free == self.members.len() {
            self.members.push(Some(member));
        } else {
            self.members[free] = Some(member);
        }
        self.awake.push(bit);
        Ok(Token(bit))
    }

    /// The consumer of a queue, to receive from it.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut Consumer> {
        let place = usize::try_from(token.0).ok()?;
        let member = self.members.get_mut(place)?.as_mut()?;
        if member.armed && !self.client.mark().is_forked() {
            member.retract();
            self.awake.push(token.0);
        }
        Some(&mut member.consumer)
    }

    /// Takes a queue out and returns its consumer.
    pub fn remove(&mut self, token: Token) -> Option<Consumer> {
        let place = usize::try_from(token.0).ok()?;
        let mut member = self.members.get_mut(place)?.take()?;
        self.awake.retain(|bit| *bit != token.0);
        self.polled -= usize::from(!member.may_park());
        if !self.client.mark().is_forked() {
            member.retract();
            member.consumer.ring.line().set_doorbell(0, 0);
        }
        Some(member.consumer)
    }

    /// Waits until queues are ready, at most this long, or as long as it takes; returns those that are, none after the
    /// time-out.
    ///
    /// # Errors
    /// [`ClientError::UsedAfterFork`] in a forked child.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<Token>, ClientError> {
        let started = Instant::now();
        loop {
            let ready = self.look()?;
            if !ready.is_empty() {
                return Ok(ready);
            }
            let left = match timeout {
                None => SLEEP_MAX,
                Some(timeout) => timeout.saturating_sub(started.elapsed()).min(SLEEP_MAX),
            };
            if left.is_zero() {
                return Ok(ready);
            }
            if self.polled == 0 {
                self.bell.own().sleep(left);
            } else {
                std::thread::sleep(POLL.min(left));
            }
        }
    }

    /// Prepares for waiting with `poll`, `epoll` or an async runtime: returns `true` if queues are ready now, else the
    /// descriptor of [`Self::as_fd`] becomes readable when one may be. Then, or after a pause of one's own choice,
    /// [`Self::wait`] with a time-out of zero says which.
    ///
    /// A process that may not issue `membarrier(2)` should look at least every millisecond.
    ///
    /// # Errors
    /// [`ClientError::UsedAfterFork`] in a forked child.
    pub fn arm(&mut self) -> Result<bool, ClientError> {
        self.bell.own().signals().drain();
        let ready = self.look()?;
        if !ready.is_empty() || self.bell.own().arm_socket() {
            self.bell.own().awake();
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether this process has to look at its queues itself, because it may not issue `membarrier(2)`.
    #[must_use]
    pub fn must_poll(&self) -> bool {
        self.polled != 0
    }

    /// Takes what was rung, looks at the queues that are awake, arms the empty ones. Returns the ready ones.
    fn look(&mut self) -> Result<Vec<Token>, ClientError> {
        if self.client.mark().is_forked() {
            return Err(ClientError::UsedAfterFork);
        }
        self.bell.own().awake();
        self.take_rung();
        if self.polled != 0 || self.looked_at_all.elapsed() >= SLEEP_MAX {
            self.look_at_all();
        }
        let ready = self.ready_now();
        if !ready.is_empty() {
            return Ok(ready);
        }
        self.arm_awake();
        Ok(self.ready_now())
    }

    fn take_rung(&mut self) {
        let Self { bell, members, awake, .. } = self;
        bell.own().take_pending(|bit| {
            let place = usize::try_from(bit).ok().and_then(|place| members.get_mut(place));
            if let Some(Some(member)) = place
                && member.armed
            {
                member.retract();
                awake.push(bit);
            }
        });
    }

    fn ready_now(&mut self) -> Vec<Token> {
        let Self { members, awake, .. } = self;
        let mut ready = Vec::new();
        for bit in awake.iter() {
            let place = usize::try_from(*bit).ok().and_then(|place| members.get_mut(place));
            if let Some(Some(member)) = place
                && member.is_ready()
            {
                member.retract();
                ready.push(Token(*bit));
            }
        }
        awake.retain(|bit| {
            let place = usize::try_from(*bit).ok().and_then(|place| members.get(place));
            place.is_some_and(|member| member.as_ref().is_some_and(|member| !member.armed))
        });
        ready
    }

    /// Sets the bit of every queue that is awake, then runs one barrier for all. They stay in `awake` until
    /// [`Self::ready_now`] has looked again.
    fn arm_awake(&mut self) {
        let Self { members, awake, .. } = self;
        let mut kernel = None;
        for bit in awake.iter() {
            let place = usize::try_from(*bit).ok().and_then(|place| members.get_mut(place));
            if let Some(Some(member)) = place {
                member.announce();
                let own = member.consumer.attachment.kernel;
                // A membarrier is a fence as well: one of the strongest kind serves all rings.
                if kernel.is_none() || own.is_membarrier() {
                    kernel = Some(own);
                }
            }
        }
        if let Some(kernel) = kernel {
            kernel.heavy_barrier();
        }
    }

    /// Whatever became of rings and of the connection: finds what is ready, and what is lost.
    fn look_at_all(&mut self) {
        self.looked_at_all = Instant::now();
        self.client.look_after_connection();
        for (bit, member) in (0_u32..).zip(&mut self.members) {
            if let Some(member) = member
                && member.armed
                && member.is_ready()
            {
                member.retract();
                self.awake.push(bit);
            }
        }
    }
}

impl AsFd for Selector {
    /// A descriptor that becomes readable when a queue may be ready, after [`Selector::arm`] returned `false`. Only to be
    /// waited for: the selector reads it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.own().signals().as_fd()
    }
}

impl Drop for Selector {
    fn drop(&mut self) {
        if self.client.mark().is_forked() {
            return;
        }
        for member in self.members.iter_mut().flatten() {
            member.retract();
            member.consumer.ring.line().set_doorbell(0, 0);
        }
    }
}
