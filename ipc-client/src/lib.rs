//! Client library of ringmain.

#![deny(missing_docs)]

#[doc(hidden)]
pub mod layout;
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
mod client;
#[cfg(not(loom))]
pub mod wait;

#[cfg(not(loom))]
pub use client::{
    Client, ClientError, Consumer, Guard, HandleOptions, Message, Producer, ReadMetadataError,
    ReceiveError, Received, Reservation, SOCKET_VARIABLE, Selector, SendError, Token,
    default_socket,
};
pub use layout::metadata::{Metadata, MetadataError, TraceId};
pub use protocol::{ErrorCode, HandleInfo, Kind, QueueInfo, QueueSpec, Role, Status, WakeMode};
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
    pub use crate::{layout, protocol, ring, sync};
}
