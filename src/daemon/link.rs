//! What keeper and broker say to each other over their socket pair.
//!
//! The broker asks and waits: for [`ToKeeper::Load`] and [`ToKeeper::Apply`] the answer is the next but for
//! [`FromKeeper::Stop`], [`FromKeeper::Leave`] and [`FromKeeper::UpgradeRefused`], which may come at any time. The
//! protocol has its own version, because after an upgrade an old keeper talks to a new broker: variants are only ever
//! added, at the end.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringmain_client::protocol::FRAME_BYTES_MAX;
use ringmain_client::protocol::frame::Framing;
use ringmain_client::sys::packet::{Blocking, ReceiveError, receive_packet, send_packet};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Limits, ShardOptions};

/// The keeper protocol.
pub(super) const KEEPER: Framing = Framing { magic: *b"RMKP", version: 1 };

/// One entry of the store on its way. Its descriptors travel beside the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) key: Vec<u8>,
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: u8,
}

/// What the broker needs to know to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BrokerConfig {
    /// For people.
    pub(super) socket: String,
    pub(super) limits: Limits,
    pub(super) force_no_membarrier: bool,
    pub(super) force_no_peer_pidfd: bool,
    pub(super) keeper_pid: u32,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub(super) keeper_started_ns: u64,
    /// This start counted.
    pub(super) broker_starts: u64,
}

/// What the broker needs to know about the brokered plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BrokeredConfig {
    /// Absolute.
    pub(super) data_dir: Option<std::path::PathBuf>,
    pub(super) shards: ShardOptions,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToKeeper {
    /// First: the process runs and waits for [`FromKeeper::Start`].
    Standby { version: String },
    /// Entries behind this key. Answer: [`FromKeeper::Entries`].
    Load { after: Vec<u8> },
    /// Deletes, then puts, at once. Answer: [`FromKeeper::Applied`] or [`FromKeeper::NotApplied`].
    Apply { deletes: Vec<Vec<u8>>, puts: Vec<Item> },
    /// Everything is adopted, requests are served from now on.
    Ready,
    /// A client wants the broker replaced; empty: by the same binary. Answer, some time later: [`FromKeeper::Leave`] or
    /// [`FromKeeper::UpgradeRefused`].
    Upgrade { binary: String },
    /// The rings are closed after [`FromKeeper::Stop`]; the text says what was left.
    Stopped { text: String },
    /// Nothing can be served, whatever is tried: the daemon ends with this exit code and this line.
    Refused { exit_code: u8, text: String },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromKeeper {
    /// With the listening socket.
    Start(BrokerConfig),
    /// A page of the store, with its descriptors; empty at the end.
    Entries(Vec<Item>),
    Applied,
    NotApplied {
        reason: String,
    },
    /// Close the rings and leave.
    Stop,
    /// Your successor stands by: leave, touching nothing.
    Leave,
    UpgradeRefused {
        reason: String,
    },
    /// In place of [`Self::Start`]: with the listening socket.
    StartWith(BrokerConfig, BrokeredConfig),
}

/// The other side is gone or talks nonsense: there is no way to go on.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(super) struct LinkLost(pub(super) String);

/// Sends one message.
pub(super) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), LinkLost> {
    let frame = KEEPER.encode(message).map_err(|error| LinkLost(error.to_string()))?;
    send_packet(socket, &frame, descriptors, Blocking::Wait)
        .map_err(|error| LinkLost(error.to_string()))
}

/// What was received.
pub(super) enum Incoming<T> {
    /// Nothing is there, and the caller did not want to wait.
    Nothing,
    Message(T, Vec<OwnedFd>),
    /// A message whose descriptors found no room in this process. All of it is lost.
    NoRoom(String),
}

/// Takes one message.
pub(super) fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    blocking: Blocking,
) -> Result<Incoming<T>, LinkLost> {
    let received = match receive_packet(socket, buffer, blocking) {
        Ok(received) => received,
        Err(ReceiveError::WouldBlock) => return Ok(Incoming::Nothing),
        Err(error @ ReceiveError::DescriptorsLost) => {
            return Ok(Incoming::NoRoom(error.to_string()));
        }
        Err(error) => return Err(LinkLost(error.to_string())),
    };
    let message =
        KEEPER.decode(&buffer[..received.length]).map_err(|error| LinkLost(error.to_string()))?;
    Ok(Incoming::Message(message, received.descriptors))
}

/// The broker's end.
#[derive(Debug)]
pub(super) struct KeeperLink {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// Came while an answer was awaited.
    events: VecDeque<FromKeeper>,
}

impl KeeperLink {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, buffer: vec![0; FRAME_BYTES_MAX], events: VecDeque::new() }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn send(&self, message: &ToKeeper) -> Result<(), LinkLost> {
        send(self.socket.as_fd(), message, &[])
    }

    /// The next event, if one is there.
    pub(super) fn event(&mut self) -> Result<Option<FromKeeper>, LinkLost> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        match receive(self.socket.as_fd(), &mut self.buffer, Blocking::Return)? {
            Incoming::Message(event, _) => Ok(Some(event)),
            Incoming::Nothing => Ok(None),
            Incoming::NoRoom(reason) => Err(LinkLost(reason)),
        }
    }

    /// Whether an event waits that poll(2) does not show.
    pub(super) fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// Waits for the keeper's first message.
    pub(super) fn start(&mut self) -> Result<(BrokerConfig, BrokeredConfig, OwnedFd), LinkLost> {
        let (config, brokered, descriptors) = match self.answer()? {
            (FromKeeper::StartWith(config, brokered), descriptors) => {
                (config, brokered, descriptors)
            }
            // A keeper of a version that had the direct plane only.
            (FromKeeper::Start(config), descriptors) => {
                (config, BrokeredConfig::default(), descriptors)
            }
            (other, _) => {
                return Err(LinkLost(format!("unexpected message of the keeper: {other:?}")));
            }
        };
        match <[OwnedFd; 1]>::try_from(descriptors) {
            Ok([listener]) => Ok((config, brokered, listener)),
            Err(_) => Err(LinkLost("the keeper sent no listening socket".to_owned())),
        }
    }

    /// One page of the store.
    pub(super) fn load(&mut self, after: &[u8]) -> Result<(Vec<Item>, Vec<OwnedFd>), LinkLost> {
        self.send(&ToKeeper::Load { after: after.to_vec() })?;
        match self.answer()? {
            (FromKeeper::Entries(items), descriptors) => Ok((items, descriptors)),
            (other, _) => Err(LinkLost(format!("unexpected message of the keeper: {other:?}"))),
        }
    }

    /// Stores; when it returns, it outlives this process. For entries without new descriptors, which the keeper has no
    /// reason to refuse.
    pub(super) fn apply(&mut self, deletes: Vec<Vec<u8>>, puts: Vec<Item>) -> Result<(), LinkLost> {
        match self.apply_with(deletes, puts, &[])? {
            Ok(()) => Ok(()),
            Err(reason) => Err(LinkLost(format!("the keeper did not store an entry: {reason}"))),
        }
    }

    /// The same with descriptors. The keeper may have no room for them: then nothing is stored, and the inner error says
    /// why.
    pub(super) fn apply_with(
        &mut self,
        deletes: Vec<Vec<u8>>,
        puts: Vec<Item>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Result<(), String>, LinkLost> {
        send(self.socket.as_fd(), &ToKeeper::Apply { deletes, puts }, descriptors)?;
        match self.answer()? {
            (FromKeeper::Applied, _) => Ok(Ok(())),
            (FromKeeper::NotApplied { reason }, _) => Ok(Err(reason)),
            (other, _) => Err(LinkLost(format!("unexpected message of the keeper: {other:?}"))),
        }
    }

    /// Returns when the keeper is gone or has closed the socket.
    pub(super) fn wait_for_end(&mut self) -> Result<(), LinkLost> {
        loop {
            self.answer()?;
        }
    }

    fn answer(&mut self) -> Result<(FromKeeper, Vec<OwnedFd>), LinkLost> {
        loop {
            let socket = self.socket.as_fd();
            match receive(socket, &mut self.buffer, Blocking::Wait)? {
                Incoming::Message(
                    event @ (FromKeeper::Stop
                    | FromKeeper::Leave
                    | FromKeeper::UpgradeRefused { .. }),
                    _,
                ) => self.events.push_back(event),
                Incoming::Message(answer, descriptors) => return Ok((answer, descriptors)),
                Incoming::Nothing => {}
                Incoming::NoRoom(reason) => return Err(LinkLost(reason)),
            }
        }
    }
}
