//! Queues of a measurement: on a private daemon, or on a running one, and gone afterwards.

use std::path::{Path, PathBuf};

use ringmain_client::Client;
use ringmain_client::raw::layout::{Geometry, slot};
use ringmain_client::raw::protocol::{Kind, QueueSpec};

use super::lines::LINE_BYTES;
use crate::cli::Socket;
use crate::cli::exit::{Failure, Outcome};
use crate::cli::private::PrivateBroker;

/// What the queues look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    pub(crate) slots: u32,
    pub(crate) slot_size: u32,
    pub(crate) max_message: u32,
}

impl Shape {
    /// Slots of the cache lines of one message, unless another slot size is asked for.
    pub(crate) fn new(kind: Kind, slots: u32, slot_size: Option<u32>, size: u32) -> Outcome<Self> {
        let line = u64::try_from(LINE_BYTES).unwrap_or(64);
        let header = u64::try_from(slot::BODY).unwrap_or(16);
        let lines = (u64::from(size) + header).div_ceil(line).max(1) * line;
        let most = u64::from(Geometry::SLOT_SIZE_MAX);
        let slot_size = slot_size
            .unwrap_or_else(|| u32::try_from(lines.min(most)).unwrap_or(Geometry::SLOT_SIZE_MAX));
        Geometry::new(Some(slots), Some(slot_size), Some(size)).map_err(Failure::usage)?;
        Ok(Self {
            kind,
            slots,
            slot_size,
            // Even an empty message needs a last word of another length.
            max_message: size.max(1),
        })
    }

    pub(crate) fn spec(&self) -> QueueSpec {
        QueueSpec {
            kind: Some(self.kind),
            slots: Some(self.slots),
            slot_size: Some(self.slot_size),
            max_message: Some(self.max_message),
            ..QueueSpec::default()
        }
    }
}

/// Where the queues of a measurement are.
#[derive(Debug)]
pub(crate) struct Place {
    client: Client,
    socket: PathBuf,
    made: Vec<String>,
    // Stopped after the queues were deleted.
    _private: Option<PrivateBroker>,
}

impl Place {
    /// The running daemon if its socket is given, else a private one.
    pub(crate) fn new(socket: &Socket) -> Outcome<Self> {
        match socket.given() {
            Some(path) => Ok(Self {
                client: Client::connect(path)?,
                socket: path.to_path_buf(),
                made: Vec::new(),
                _private: None,
            }),
            None => Self::private(),
        }
    }

    /// A private daemon.
    pub(crate) fn private() -> Outcome<Self> {
        let broker = PrivateBroker::start()?;
        Ok(Self {
            client: broker.connect()?,
            socket: broker.socket().to_path_buf(),
            made: Vec::new(),
            _private: Some(broker),
        })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes a queue; its name tells what it is for.
    pub(crate) fn make(&mut self, purpose: &str, shape: &Shape) -> Outcome<String> {
        let number = self.made.len();
        let name = format!("{purpose}-{}-{number}", std::process::id());
        self.client.create_queue(&name, shape.spec())?;
        self.made.push(name.clone());
        Ok(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in &self.made {
            // The private daemon takes its queues along; another one may be gone, and they with it.
            let _ = self.client.delete_queue(name);
        }
    }
}
