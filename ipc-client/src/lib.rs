//! Client library of ringmain, a message broker for the processes of one Linux host.
//!
//! A daemon (`ringmain serve`) creates queues in shared memory and hands them out; messages go from process to process
//! through these rings, without the daemon and without a system call while both sides are busy.
//!
//! - [`Client`] connects to the daemon, manages queues, and attaches handles.
//! - [`Producer`] and [`Consumer`] are the two kinds of handle. They copy messages ([`Producer::send`],
//!   [`Consumer::receive`]), work in place ([`Producer::reserve`], [`Consumer::take`]) or in batches
//!   ([`Producer::send_batch`], [`Consumer::receive_batch`]).
//! - [`BrokeredProducer`] and [`BrokeredConsumer`] are the handles on brokered queues, whose messages go through the daemon: they are
//!   confirmed ([`Receipt`]), on disk if the queue is durable, leased to one consumer of a group at a time
//!   ([`Delivery`]), acknowledged, and delivered again if they are not.
//! - [`Requester`] and [`Replier`] are for requests and their replies, over two queues of either plane.
//! - [`WaitPolicy`] says how a handle waits: busily, asleep, or first one and then the other.
//! - [`Selector`] waits for many queues at once, `async_io` (cargo feature `tokio`) without blocking a thread.
//!
//! # What to expect
//! - A queue of kind [`Kind::Spsc`] has one producer and one consumer at a time and keeps the order of messages. A queue
//!   of kind [`Kind::Mpmc`] has many of both; each message goes to one consumer.
//! - Any process may be killed at any time. What it had sent is received; what it was writing is not; what it held as a
//!   consumer is given to another one, marked as redelivered. Messages live in memory and do not survive the machine, except
//!   for the confirmed messages of durable queues.
//! - The daemon may be killed and replaced at any time: handles go on, and connect again by themselves.
//! - After `fork` the child cannot use what the parent made; every call says so. It connects anew.
//!
//! # Example
//! Two processes; needs a running daemon.
//! ```no_run
#![doc = include_str!("../examples/ping_pong.rs")]
//! ```

#![deny(missing_docs)]

#[doc(hidden)]
pub mod layout;
#[doc(hidden)]
pub mod pair;
pub mod protocol;
#[doc(hidden)]
pub mod ring;
#[doc(hidden)]
pub mod sync;
#[cfg(not(loom))]
#[doc(hidden)]
pub mod sys;

#[cfg(all(feature = "tokio", not(loom)))]
pub mod async_io;
#[cfg(not(loom))]
mod brokered;
#[cfg(not(loom))]
mod client;
#[cfg(not(loom))]
mod request;
#[cfg(not(loom))]
pub mod wait;
#[doc(hidden)]
pub mod wire;

#[cfg(not(loom))]
pub use brokered::{
    AckError, BrokeredConsumer, BrokeredProducer, ConfirmError, Confirmation, ConsumerOptions,
    Delivery, Level, ProducerOptions, Receipt, Receipts, SettledRun, Transaction, TransactionError,
};
#[cfg(not(loom))]
pub use client::{
    Body, Client, ClientError, Consumer, Guard, HandleOptions, Message, Producer,
    ReadMetadataError, ReceiveError, Received, Reservation, ResetOptions, SOCKET_VARIABLE,
    Selector, SendError, Token, default_socket,
};
pub use layout::metadata::{Metadata, MetadataError, TraceId};
pub use protocol::{
    BrokeredInfo, DeliverySpec, ErrorCode, GroupInfo, GroupPlace, HandleInfo, JournalInfo, Kind,
    Overflow, Plane, QueueInfo, QueueSpec, Retention, Role, StartAt, Status, WakeMode,
};
#[cfg(not(loom))]
pub use request::{Replier, Reply, ReplyError, ReplyTo, RequestError, Requester};
pub use ring::{Closed, Fault, Invariant};
#[cfg(not(loom))]
pub use sys::affinity;
#[cfg(not(loom))]
pub use wait::WaitPolicy;

/// The layers below the client, for the daemon and for tests. Not covered by any promise of compatibility.
#[doc(hidden)]
pub mod raw {
    #[cfg(not(loom))]
    pub use crate::sys;
    pub use crate::{layout, pair, protocol, ring, sync, wire};
}
