//! The client: connects to the daemon, manages queues, hands out producers and consumers.

mod attachment;
mod background;
mod batch;
mod bells;
mod body;
mod connection;
mod consumer;
mod doorbell;
mod error;
mod groups;
mod guard;
mod overflow;
mod producer;
mod reservation;
mod selector;
mod waiting;

/// What [`crate::brokered`] and [`crate::async_io`] build on.
pub(crate) mod internal {
    pub(crate) use super::attachment::{
        Attachment, check_count, descriptor_of, map_verified, wrong_plane,
    };
    #[cfg(feature = "tokio")]
    pub(crate) use super::bells::shared::BellPlace;
    pub(crate) use super::connection::{Inner, random_number};
    #[cfg(feature = "tokio")]
    pub(crate) use super::overflow::look;
    pub(crate) use super::producer::encode;
    pub(crate) use super::waiting::{Side, Stop, leave, wait_for};
    #[cfg(feature = "tokio")]
    pub(crate) use super::waiting::{found_nothing, pass_on};
}

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use body::Body;
pub use consumer::{Consumer, Received};
pub use error::{ClientError, ReceiveError, SendError};
pub use groups::ResetOptions;
pub use guard::{Guard, Message, ReadMetadataError};
pub use producer::Producer;
pub use reservation::Reservation;
pub use selector::{Selector, Token};

use connection::{Inner, unexpected};

use crate::brokered::{
    BrokeredConsumer, BrokeredProducer, ConsumerOptions, ProducerOptions, Transaction,
};
use crate::protocol::{DeliverySpec, ErrorCode, QueueInfo, QueueSpec, Reply, Request, Status};
use crate::request::{Replier, Requester};
use crate::wait::WaitPolicy;

/// Environment variable that names the daemon's socket.
pub const SOCKET_VARIABLE: &str = "RINGMAIN_SOCKET";

/// Where the daemon is looked for: `$RINGMAIN_SOCKET`, else `$XDG_RUNTIME_DIR/ringmain/ringmain.sock`, else
/// `/run/ringmain/ringmain.sock`. An empty variable counts as none.
#[must_use]
pub fn default_socket() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(socket) = variable(SOCKET_VARIABLE) {
        return socket.into();
    }
    let folder = variable("XDG_RUNTIME_DIR").map_or_else(|| PathBuf::from("/run"), PathBuf::from);
    folder.join("ringmain").join("ringmain.sock")
}

/// How a handle behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandleOptions {
    /// How it waits.
    pub wait: WaitPolicy,
}

impl HandleOptions {
    /// The defaults with another wait policy.
    #[must_use]
    pub fn with_wait(wait: WaitPolicy) -> Self {
        Self { wait }
    }
}

impl From<WaitPolicy> for HandleOptions {
    fn from(wait: WaitPolicy) -> Self {
        Self::with_wait(wait)
    }
}

/// A connection to the daemon. Clones share it; every thread may use one.
///
/// The connection serves to set things up: data goes through [`Producer`] and [`Consumer`], which work on while the
/// daemon is being replaced or is dead. A lost connection is taken up again without the caller's doing.
///
/// # Errors
/// Every request returns [`ClientError::Unavailable`] if no daemon answers within 5 seconds, and
/// [`ClientError::Refused`] with a code and one line of text if the daemon says no.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl Client {
    /// Connects to the daemon at this socket.
    ///
    /// # Errors
    /// See [`Client`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        Ok(Self { inner: Inner::connect(path.as_ref().to_path_buf())? })
    }

    /// Connects to the daemon at [`default_socket`].
    ///
    /// # Errors
    /// See [`Client`].
    pub fn connect_default() -> Result<Self, ClientError> {
        Self::connect(default_socket())
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.inner.socket_path()
    }

    /// Whether there is a connection that the daemon has not closed, as far as can be told without asking it. A lost one is taken
    /// up again by the next request, and by every handle that waits.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Creates a queue; its properties as they were chosen come back.
    ///
    /// # Errors
    /// See [`Client`]; codes `Exists`, `Invalid`, `Limit`, `NotPermitted`.
    pub fn create_queue(&self, name: &str, spec: QueueSpec) -> Result<QueueInfo, ClientError> {
        let request = Request::CreateQueue { name: name.to_owned(), spec };
        match self.inner.request_once(&request, ErrorCode::Exists)? {
            Some(answer) => queue(answer.reply),
            None => self.queue_info(name),
        }
    }

    /// Deletes a queue with everything in it; everybody attached is told that it is closed.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`.
    pub fn delete_queue(&self, name: &str) -> Result<(), ClientError> {
        let request = Request::DeleteQueue { name: name.to_owned() };
        match self.inner.request_once(&request, ErrorCode::NotFound)? {
            Some(answer) => done(&answer.reply),
            None => Ok(()),
        }
    }

    /// Discards the messages of a queue; returns how many there were.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`, `Busy`.
    pub fn purge_queue(&self, name: &str) -> Result<u64, ClientError> {
        let answer = self.inner.request(&Request::PurgeQueue { name: name.to_owned() })?;
        match answer.reply {
            Reply::Purged { messages } => Ok(messages),
            reply => Err(unexpected(&reply)),
        }
    }

    /// All queues in the order of their names, without their handles.
    ///
    /// # Errors
    /// See [`Client`].
    pub fn list_queues(&self) -> Result<Vec<QueueInfo>, ClientError> {
        let mut queues: Vec<QueueInfo> = Vec::new();
        loop {
            let after = queues.last().map_or_else(String::new, |last| last.name.clone());
            let answer = self.inner.request(&Request::ListQueues { after: after.clone() })?;
            let Reply::Queues(page) = answer.reply else {
                return Err(unexpected(&answer.reply));
            };
            // Ascending names: a daemon that does not come to an end is noticed.
            match page.first() {
                None => return Ok(queues),
                Some(first) if first.name > after => queues.extend(page),
                Some(first) => {
                    let text = format!("queue {:?} after {after:?}", first.name);
                    return Err(ClientError::Protocol(text));
                }
            }
        }
    }

    /// One queue with its handles: who waits, who delays whom.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`.
    pub fn queue_info(&self, name: &str) -> Result<QueueInfo, ClientError> {
        queue(self.inner.request(&Request::QueueInfo { name: name.to_owned() })?.reply)
    }

    /// The daemon itself.
    ///
    /// # Errors
    /// See [`Client`].
    pub fn status(&self) -> Result<Status, ClientError> {
        match self.inner.request(&Request::Status)?.reply {
            Reply::Status(status) => Ok(*status),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Replaces the running broker by this binary, or by a fresh start of its own; queues and handles stay.
    ///
    /// # Errors
    /// See [`Client`]; codes `Invalid`, `NotPermitted`. A path that is not UTF-8 is an [`ClientError::Io`].
    pub fn upgrade(&self, binary: Option<&Path>) -> Result<(), ClientError> {
        let binary = match binary {
            None => String::new(),
            Some(path) => {
                std::path::absolute(path)?.into_os_string().into_string().map_err(|_| {
                    std::io::Error::new(
                        std::io::ErrorKind::InvalidInput,
                        "the binary's path is not UTF-8",
                    )
                })?
            }
        };
        done(&self.inner.request(&Request::Upgrade { binary })?.reply)
    }

    /// Changes the rules of a queue; what is `None` stays as it is. Its properties come back. Of a direct queue only
    /// `overflow` can be changed, also for those who wait for room already.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`, `Invalid`.
    pub fn edit_queue(&self, name: &str, delivery: DeliverySpec) -> Result<QueueInfo, ClientError> {
        let request = Request::EditQueue { name: name.to_owned(), delivery };
        queue(self.inner.request(&request)?.reply)
    }

    /// Moves messages of a dead-letter queue back to the queues that they came from, oldest first, at most `count` of them (0:
    /// all). Returns how many were moved.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`, `Invalid`.
    pub fn redrive(&self, dead_letter_queue: &str, count: u64) -> Result<u64, ClientError> {
        let request = Request::Redrive { name: dead_letter_queue.to_owned(), count };
        match self.inner.request(&request)?.reply {
            Reply::Redriven { messages } => Ok(messages),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Attaches a producer to a brokered queue.
    ///
    /// # Errors
    /// See [`Client`]; codes as for [`Self::producer`], and `Invalid` on a direct queue.
    pub fn brokered_producer(
        &self,
        queue: &str,
        options: ProducerOptions,
    ) -> Result<BrokeredProducer, ClientError> {
        BrokeredProducer::attach(&self.inner, queue, "", options)
    }

    /// Attaches a producer to a brokered queue under a name: the queue remembers which of its messages it has, so that one that
    /// is sent again, after a lost connection, a crash or a restart, is stored once. Messages are numbered from the last one
    /// stored on; see [`BrokeredProducer::set_next_own_sequence`]. Whoever was attached under the name before is fenced:
    /// nothing of it is stored any more. A name that nobody uses for 7 days is forgotten.
    ///
    /// # Errors
    /// As [`Self::brokered_producer`]; `Invalid` if the name is not 1 to 200 characters of `[A-Za-z0-9._-]`, `Limit` if the
    /// queue remembers 4096 names.
    pub fn named_producer(
        &self,
        queue: &str,
        name: &str,
        options: ProducerOptions,
    ) -> Result<BrokeredProducer, ClientError> {
        if name.is_empty() {
            let message = "the name of a producer is empty: give it one, or use brokered_producer";
            return Err(ClientError::Refused {
                code: ErrorCode::Invalid,
                message: message.to_owned(),
            });
        }
        BrokeredProducer::attach(&self.inner, queue, name, options)
    }

    /// Messages to several brokered queues and acknowledgements, to be carried out together or not at all.
    #[must_use]
    pub fn transaction(&self) -> Transaction {
        Transaction::new(&self.inner)
    }

    /// Attaches a consumer to a brokered queue.
    ///
    /// # Errors
    /// See [`Client`]; codes as for [`Self::consumer`], and `Invalid` on a direct queue.
    pub fn brokered_consumer(
        &self,
        queue: &str,
        options: ConsumerOptions,
    ) -> Result<BrokeredConsumer, ClientError> {
        BrokeredConsumer::attach(&self.inner, queue, &options)
    }

    /// Sends requests to a queue of either plane and receives the replies, through a session queue of its own.
    ///
    /// # Errors
    /// See [`Client`]; codes as for [`Self::producer`], and `Limit` if there is no room for the reply queue.
    pub fn requester(&self, queue: &str) -> Result<Requester, ClientError> {
        Requester::attach(self, queue)
    }

    /// Sends replies to requests.
    #[must_use]
    pub fn replier(&self) -> Replier {
        Replier::new(self)
    }

    /// Attaches a producer to a queue.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`, `Limit`, `Closed`, and `Busy` on an spsc queue that has one.
    pub fn producer(&self, queue: &str) -> Result<Producer, ClientError> {
        self.producer_with(queue, HandleOptions::default())
    }

    /// As [`Self::producer`], with options.
    ///
    /// # Errors
    /// See [`Self::producer`].
    pub fn producer_with(
        &self,
        queue: &str,
        options: HandleOptions,
    ) -> Result<Producer, ClientError> {
        Producer::attach(&self.inner, queue, options.wait)
    }

    /// Attaches a consumer to a queue.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`, `Limit`, `Closed`, and `Busy` on an spsc queue that has one.
    pub fn consumer(&self, queue: &str) -> Result<Consumer, ClientError> {
        self.consumer_with(queue, HandleOptions::default())
    }

    /// As [`Self::consumer`], with options.
    ///
    /// # Errors
    /// See [`Self::consumer`].
    pub fn consumer_with(
        &self,
        queue: &str,
        options: HandleOptions,
    ) -> Result<Consumer, ClientError> {
        Consumer::attach(&self.inner, queue, options.wait)
    }
}

fn done(reply: &Reply) -> Result<(), ClientError> {
    match reply {
        Reply::Done => Ok(()),
        reply => Err(unexpected(reply)),
    }
}

fn queue(reply: Reply) -> Result<QueueInfo, ClientError> {
    match reply {
        Reply::Queue(queue) => Ok(*queue),
        reply => Err(unexpected(&reply)),
    }
}

/// Handles may move between threads and are used by one at a time; the client may be shared.
const _: () = {
    const fn send<T: Send>() {}
    const fn sync<T: Sync>() {}
    send::<Client>();
    sync::<Client>();
    send::<Producer>();
    send::<Consumer>();
    send::<Selector>();

    /// Ambiguous, and therefore no program, if `T` is `Sync`.
    trait NotSync<Marker> {
        const OK: () = ();
    }
    impl<T: ?Sized> NotSync<()> for T {}
    struct IsSync;
    impl<T: ?Sized + Sync> NotSync<IsSync> for T {}
    let () = <Producer as NotSync<_>>::OK;
    let () = <Consumer as NotSync<_>>::OK;
    let () = <Selector as NotSync<_>>::OK;
};
