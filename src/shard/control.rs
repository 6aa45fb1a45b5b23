//! What the control thread and a shard say to each other.
//!
//! Two queues, one in each direction, each with an eventfd. Neither side waits for the other: what is under way at a time is
//! bounded by the requests that the control thread has not answered yet and by the handles that there are.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use ringmain_client::protocol::{
    BrokeredInfo, GroupInfo, HandleKey, JournalInfo, Role, StartAt, WakeMode,
};
use ringmain_client::sys::eventfd::EventFd;

use super::logic::{ControlResult, GroupCommand, QueueDefinition, QueueEdit};
use super::memory::{LinkMemory, PairMemory};

/// A handle for a shard to serve.
#[derive(Debug)]
pub struct NewHandle {
    /// Its name.
    pub key: HandleKey,
    /// Its rings.
    pub memory: PairMemory,
    /// Whose link has its word.
    pub session: u64,
    /// Its word.
    pub ready_index: u32,
    /// How sleepers and wakers are ordered on its rings.
    pub wake_mode: WakeMode,
    /// Producers: number of the lane, never used again.
    pub lane: u64,
    /// Consumers: the group.
    pub group: String,
    /// Consumers: where a new group, or a look, starts.
    pub from: StartAt,
    /// Consumers: most unacknowledged messages at first.
    pub credit: u32,
    /// Consumers: only looks.
    pub browse: bool,
    /// Producers: the name, if there is one.
    pub producer: String,
    /// It was served by a broker that is gone.
    pub adopted: bool,
}

impl NewHandle {
    /// Produce or consume.
    pub fn role(&self) -> Role {
        self.memory.pair.geometry().role()
    }
}

/// To a shard.
#[derive(Debug)]
pub enum ToShard {
    /// Answer: [`FromShard::Done`].
    Create {
        /// For the answer.
        request: u64,
        /// What it is.
        definition: QueueDefinition,
    },
    /// Answer: [`FromShard::Done`].
    Edit {
        /// For the answer.
        request: u64,
        /// Which.
        queue: u64,
        /// What changes.
        edit: QueueEdit,
    },
    /// Closes its handles. Answer: [`FromShard::Done`].
    Delete {
        /// For the answer.
        request: u64,
        /// Which.
        queue: u64,
    },
    /// Answer: [`FromShard::Done`] with a number of messages.
    Purge {
        /// For the answer.
        request: u64,
        /// Which.
        queue: u64,
    },
    /// Answer: [`FromShard::Done`] with a number of messages.
    Redrive {
        /// For the answer.
        request: u64,
        /// The dead-letter queue.
        queue: u64,
        /// At most so many; 0 for all.
        count: u64,
        /// Ids of the queues to which whoever asks may send, in ascending order.
        origins: Vec<u64>,
    },
    /// Creates, resets or deletes a group. Answer: [`FromShard::Done`], of a creation or a reset with where it starts.
    Group {
        /// For the answer.
        request: u64,
        /// Of which queue.
        queue: u64,
        /// Which; empty for the default group.
        group: String,
        /// What is to be done.
        command: GroupCommand,
    },
    /// Answer: [`FromShard::Groups`].
    Groups {
        /// For the answer.
        request: u64,
        /// Of which queue.
        queue: u64,
        /// This one only.
        wanted: Option<String>,
        /// Those behind this one, by name.
        after: Option<String>,
    },
    /// Answer: [`FromShard::Information`].
    Inform {
        /// For the answer.
        request: u64,
        /// Which.
        queues: Vec<u64>,
        /// With the counters of their handles.
        handles: bool,
    },
    /// Figures of the journal. Answer: [`FromShard::Figures`].
    Figures {
        /// For the answer.
        request: u64,
    },
    /// A session's link and its eventfd. Before its first handle.
    Link {
        /// Whose.
        session: u64,
        /// The words.
        link: Arc<LinkMemory>,
        /// What wakes the shard.
        bell: Arc<EventFd>,
    },
    /// The session ends when its handles are released.
    Unlink {
        /// Whose.
        session: u64,
    },
    /// A handle. Answer: [`FromShard::Attached`], unless it is adopted.
    Attach {
        /// For the answer.
        request: u64,
        /// The handle.
        handle: Box<NewHandle>,
    },
    /// Everything that the broker before had is here now: messages may flow.
    Adopted,
    /// A handle was given back, or its process is dead. Answer, when what it sent is stored: [`FromShard::Released`].
    Gone {
        /// Which.
        key: HandleKey,
        /// Whether the process is dead.
        died: bool,
    },
    /// Stores what was sent, closes the journal and ends. Answer: [`FromShard::Stopped`].
    Stop {
        /// Whether the clients are told that the daemon stops; else another broker takes over.
        close: bool,
    },
}

/// What may be wrong with a journal that is open, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing more is stored; what is durable is given out.
    Failed(String),
    /// No room: producers wait until there is some.
    Full(String),
}

/// From a shard.
#[derive(Debug)]
pub enum FromShard {
    /// The journal is open, or cannot be opened.
    Started {
        /// Which shard.
        shard: u32,
        /// Its queues.
        result: Result<Started, StartError>,
    },
    /// The end of a request.
    Done {
        /// From the request.
        request: u64,
        /// What became of it.
        result: ControlResult,
    },
    /// What was asked about.
    Information {
        /// From the request.
        request: u64,
        /// Which shard.
        shard: u32,
        /// Of those queues that there are.
        queues: Vec<(u64, BrokeredInfo)>,
        /// Of the handles of these queues, if asked for.
        handles: Vec<HandleCounters>,
    },
    /// Figures of the journal.
    Figures {
        /// From the request.
        request: u64,
        /// They.
        journal: Box<JournalInfo>,
    },
    /// A handle is served.
    Attached {
        /// From the request.
        request: u64,
        /// Which.
        key: HandleKey,
        /// What became of it: done, or refused.
        result: ControlResult,
        /// Its group did not exist: it was created, and is stored.
        group_created: bool,
    },
    /// Groups of a queue.
    Groups {
        /// From the request.
        request: u64,
        /// By name; `None`: there is no such queue.
        groups: Option<Vec<GroupInfo>>,
    },
    /// Nothing of a handle is in use any more.
    Released {
        /// Which.
        key: HandleKey,
    },
    /// A client broke the rules; its handle is closed.
    Fault {
        /// Which.
        key: HandleKey,
        /// What was seen.
        what: String,
    },
    /// The client of a handle sleeps on a doorbell.
    Ring {
        /// Which.
        key: HandleKey,
        /// Number of the doorbell, as the client says.
        doorbell: u32,
        /// Its bit, as the client says.
        bit: u32,
    },
    /// What is wrong with its journal now, for the log and for whoever asks; `None`: nothing any more.
    Trouble {
        /// Which shard.
        shard: u32,
        /// What.
        trouble: Option<Trouble>,
    },
    /// A line for the log.
    Log {
        /// Without an end of line.
        text: String,
    },
    /// A file of a journal in memory is wanted; it is stored by the keeper before the answer.
    CreateSegment {
        /// Which shard.
        shard: u32,
        /// Name of the file.
        name: String,
        /// Its memory.
        memory: OwnedFd,
        /// Length.
        bytes: u64,
        /// Whether it is stored, or why not.
        answer: Sender<Result<(), String>>,
    },
    /// A file of a journal in memory is not needed any more.
    RemoveSegment {
        /// Which shard.
        shard: u32,
        /// Name of the file.
        name: String,
    },
    /// The shard's thread ends.
    Stopped {
        /// Which shard.
        shard: u32,
        /// Messages that wait for consumers.
        messages: u64,
    },
}

/// What was found in a journal.
#[derive(Debug, Default)]
pub struct Started {
    /// Its queues.
    pub queues: Vec<QueueDefinition>,
    /// Greater than every id that was ever used in it.
    pub next_queue: u64,
    /// For the log: how the disk is written, what was recovered.
    pub text: String,
}

/// Why a journal cannot be opened.
#[derive(Debug, Clone)]
pub enum StartError {
    /// It is damaged.
    Damaged(String),
    /// A right is missing.
    Permission(String),
    /// It cannot lie there.
    Config(String),
    /// The operating system refused.
    Io(String),
}

impl StartError {
    /// One line that says what to do.
    pub fn text(&self) -> &str {
        match self {
            Self::Damaged(text) | Self::Permission(text) | Self::Config(text) | Self::Io(text) => {
                text
            }
        }
    }
}

/// What passed through a handle.
#[derive(Debug, Clone, Copy)]
pub struct HandleCounters {
    /// Which.
    pub key: HandleKey,
    /// Messages.
    pub messages: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Messages that it has and the shard or the client has not finished: sent and not confirmed, delivered and not
    /// acknowledged.
    pub unfinished: u64,
}

/// Where one side sends to: a queue and the eventfd that announces it.
#[derive(Debug)]
pub struct Outbox<T> {
    sender: Sender<T>,
    bell: Arc<EventFd>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), bell: Arc::clone(&self.bell) }
    }
}

impl<T> Outbox<T> {
    /// Of the receiver that watches this eventfd.
    pub fn new(sender: Sender<T>, bell: Arc<EventFd>) -> Self {
        Self { sender, bell }
    }

    /// Sends; if nobody receives any more, that is the end of the sender, too, and not its problem.
    pub fn send(&self, message: T) {
        let _ = self.sender.send(message);
        self.bell.signal();
    }
}
