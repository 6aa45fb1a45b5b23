//! Doorbells that the daemon knows, and their reuse.
//!
//! A process has few doorbells. One that is no longer needed is kept for the next selector, further ones are given back
//! to the daemon, and async handles share theirs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::connection::{Inner, unexpected};
use super::doorbell::OwnDoorbell;
use super::error::ClientError;
use crate::protocol::{HandleKey, Reply, Request};

/// Doorbells that are kept for the next user. Whoever makes one selector after the other uses the same doorbell, so that
/// publishers need not fetch one each time.
const IDLE_MAX: usize = 1;

/// Doorbells of one client that are not in use, and those that are shared.
#[derive(Debug, Default)]
pub(crate) struct Bells {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Grows when the daemon is another one, which knows none of our doorbells.
    generation: u64,
    idle: Vec<(u32, OwnDoorbell)>,
    #[cfg(feature = "tokio")]
    shared: Vec<std::sync::Weak<shared::SharedBell>>,
}

impl Bells {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon knows none of them any more.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        state.generation += 1;
        state.idle.clear();
        #[cfg(feature = "tokio")]
        state.shared.clear();
    }
}

/// A doorbell in use. Dropped, it is kept for the next user.
#[derive(Debug)]
pub(crate) struct LeasedBell {
    client: Arc<Inner>,
    generation: u64,
    id: u32,
    /// `None` only while it is dropped.
    own: Option<OwnDoorbell>,
}

impl LeasedBell {
    /// One that was kept, or a new one.
    pub(crate) fn new(client: &Arc<Inner>) -> Result<Self, ClientError> {
        let (generation, idle) = {
            let mut state = client.bells.lock();
            (state.generation, state.idle.pop())
        };
        let (id, own) = match idle {
            Some(kept) => kept,
            None => {
                let own = OwnDoorbell::new(client.mark())?;
                (register(client, &own)?, own)
            }
        };
        Ok(Self { client: Arc::clone(client), generation, id, own: Some(own) })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The doorbell itself.
    pub(crate) fn own(&self) -> &OwnDoorbell {
        match &self.own {
            Some(own) => own,
            None => unreachable!("only drop takes it"),
        }
    }

    /// Tells the daemon that this handle is rung here. A daemon that was started anew gets the doorbell first.
    pub(crate) fn bind(&mut self, handle: HandleKey) -> Result<(), ClientError> {
        match self.client.request(&Request::BindDoorbell { handle, doorbell: self.id }) {
            Err(error) if error.is_not_found() => {
                self.id = register(&self.client, self.own())?;
                self.generation = self.client.bells.lock().generation;
                self.client.request(&Request::BindDoorbell { handle, doorbell: self.id })?;
                Ok(())
            }
            result => result.map(|_| ()),
        }
    }
}

impl Drop for LeasedBell {
    fn drop(&mut self) {
        let Some(own) = self.own.take() else { return };
        if self.client.mark().is_forked() {
            return;
        }
        own.reset();
        let mut state = self.client.bells.lock();
        if state.generation != self.generation {
            return;
        }
        if state.idle.len() >= IDLE_MAX {
            drop(state);
            if self.client.release_doorbell(self.id) {
                return;
            }
            // The daemon could not be told, and knows it as before.
            state = self.client.bells.lock();
        }
        if state.generation == self.generation {
            state.idle.push((self.id, own));
        }
    }
}

fn register(client: &Inner, doorbell: &OwnDoorbell) -> Result<u32, ClientError> {
    let answer = client.request_with(&Request::RegisterDoorbell, &doorbell.descriptors())?;
    match answer.reply {
        Reply::Doorbell { doorbell } => Ok(doorbell),
        reply => Err(unexpected(&reply)),
    }
}

#[cfg(feature = "tokio")]
pub(crate) mod shared {
    //! One socket for several async handles.
    //!
    //! Each handle watches the socket on its own and has its own bit. A socket that nobody drains is full at some time and
    //! tells of no further ring, and one that a handle has drained may not have told the others. So whoever drains it
    //! signals to all on an eventfd that stays in this process and is never read. A runtime watches edges: every signal
    //! wakes all who watch. Whoever finds its bit clear waits on.

    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::{Arc, Mutex, PoisonError};

    use super::LeasedBell;
    use crate::client::attachment::Attachment;
    use crate::client::error::ClientError;
    use crate::sys::eventfd::EventFd;
    use crate::sys::fork::ForkMark;

    /// Handles of one shared doorbell: a ring wakes them all, so not too many.
    const HANDLES: u32 = 32;

    #[derive(Debug)]
    pub(crate) struct SharedBell {
        bell: Mutex<LeasedBell>,
        /// Tells all handles that one of them has drained the socket.
        drained: EventFd,
        /// Bits that are given out.
        used: Mutex<u32>,
    }

    /// A handle's place at a shared doorbell.
    #[derive(Debug)]
    pub(crate) struct BellPlace {
        shared: Arc<SharedBell>,
        bit: u32,
        mark: ForkMark,
    }

    impl SharedBell {
        fn place(self: &Arc<Self>, mark: ForkMark) -> Option<BellPlace> {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let bit = used.trailing_ones();
            if bit >= HANDLES {
                return None;
            }
            *used |= 1 << bit;
            Some(BellPlace { shared: Arc::clone(self), bit, mark })
        }
    }

    impl BellPlace {
        /// A place at a doorbell that has one, or at a new one, bound to this handle.
        pub(crate) fn new(attachment: &Attachment) -> Result<(Self, u32), ClientError> {
            let bells = &attachment.client.bells;
            let mark = attachment.mark();
            let known: Vec<_> = {
                let mut state = bells.lock();
                state.shared.retain(|shared| shared.strong_count() != 0);
                state.shared.iter().filter_map(std::sync::Weak::upgrade).collect()
            };
            // Without the lock: a doorbell whose last handle goes meanwhile is dropped here, and takes it.
            let free = known.iter().find_map(|shared| shared.place(mark));
            drop(known);
            let place = match free {
                Some(place) => place,
                None => {
                    let bell = LeasedBell::new(&attachment.client)?;
                    bell.own().arm_socket();
                    let shared = Arc::new(SharedBell {
                        bell: Mutex::new(bell),
                        drained: EventFd::new()?,
                        used: Mutex::new(1),
                    });
                    bells.lock().shared.push(Arc::downgrade(&shared));
                    Self { shared, bit: 0, mark }
                }
            };
            let doorbell = place.with(|bell| bell.bind(attachment.key).map(|()| bell.id()))?;
            Ok((place, doorbell))
        }

        fn with<T>(&self, what: impl FnOnce(&mut LeasedBell) -> T) -> T {
            what(&mut self.shared.bell.lock().unwrap_or_else(PoisonError::into_inner))
        }

        /// Its bit at the doorbell.
        pub(crate) fn bit(&self) -> u32 {
            self.bit
        }

        /// A descriptor that becomes readable with a ring of any bit. Whoever is told so calls [`Self::drain`].
        pub(crate) fn descriptor(&self) -> std::io::Result<OwnedFd> {
            self.with(|bell| bell.own().signals().as_fd().try_clone_to_owned())
        }

        /// A descriptor that becomes readable, edge by edge, when another handle has drained the socket.
        pub(crate) fn drained(&self) -> std::io::Result<OwnedFd> {
            self.shared.drained.as_fd().try_clone_to_owned()
        }

        /// Takes the rings from the socket, and tells the other handles, for which some may have been.
        pub(crate) fn drain(&self) {
            let any = self.with(|bell| bell.own().signals().drain());
            let used = *self.shared.used.lock().unwrap_or_else(PoisonError::into_inner);
            if any && used.count_ones() > 1 {
                self.shared.drained.signal();
            }
        }

        /// Whether this is a forked child of the process that got the place.
        pub(crate) fn is_forked(&self) -> bool {
            self.mark.is_forked()
        }

        /// Whether it was rung for this handle since the last call.
        pub(crate) fn take(&self) -> bool {
            self.with(|bell| bell.own().take_bit(self.bit))
        }
    }

    impl Drop for BellPlace {
        fn drop(&mut self) {
            if self.mark.is_forked() {
                // A thread that does not exist here may have the lock.
                return;
            }
            let mut used = self.shared.used.lock().unwrap_or_else(PoisonError::into_inner);
            *used &= !(1 << self.bit);
        }
    }
}
