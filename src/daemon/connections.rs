//! Connections: taking them, reading one packet, answering it.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{SockFlag, accept4};
use ringmain_client::protocol::frame::CONTROL;
use ringmain_client::protocol::{ErrorCode, FrameError, Reply, Request};
use ringmain_client::sys::packet::{Blocking, ReceiveError, receive_packet, send_packet};

use super::broker::Broker;
use super::link::LinkLost;
use super::log::log;
use super::peer::{Credentials, Peer, PeerError};

/// Connections of one user. Each costs the daemon one or two descriptors.
const CONNECTIONS_PER_USER: usize = 2048;

/// Connections taken in one go, before others get their turn.
const ACCEPTED_AT_ONCE: usize = 64;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    /// Rights of the process when it connected.
    pub(super) user: Credentials,
    pub(super) pid: u32,
    /// Until `Hello` moves it into the session.
    pub(super) pidfd: Option<OwnedFd>,
    /// After `Hello`.
    pub(super) session: Option<u64>,
}

/// A reply with its descriptors.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) descriptors: Vec<OwnedFd>,
    /// A queue whose creator knows of it once this is sent.
    pub(super) created: Option<u64>,
}

impl Answer {
    pub(super) fn of(reply: Reply) -> Self {
        Self { reply, descriptors: Vec::new(), created: None }
    }

    pub(super) fn error(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::of(Reply::Error { code, message: message.into() })
    }
}

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client's problem.
    Refused(ErrorCode, String),
    /// Ours: without the keeper there is nothing to go on with.
    Lost(LinkLost),
}

impl From<LinkLost> for Failure {
    fn from(lost: LinkLost) -> Self {
        Self::Lost(lost)
    }
}

impl From<(ErrorCode, String)> for Failure {
    fn from((code, message): (ErrorCode, String)) -> Self {
        Self::Refused(code, message)
    }
}

/// A refusal with its text.
pub(super) fn refuse<T>(code: ErrorCode, message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Refused(code, message.into()))
}

impl Broker {
    /// Takes the connections that wait.
    pub(super) fn on_listener(&mut self) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(self.listener.as_raw_fd(), flags) {
                Ok(raw) => {
                    self.is_starved = false;
                    // SAFETY: accept4 just opened it for us.
                    self.on_connection(unsafe { OwnedFd::from_raw_fd(raw) });
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(errno) => {
                    self.refuse_for_want(errno);
                    return;
                }
            }
        }
    }

    /// No descriptor (or memory) left: whoever waits is told so, rather than left waiting.
    fn refuse_for_want(&mut self, errno: Errno) {
        if !std::mem::replace(&mut self.is_starved, true) {
            log!(
                "cannot take connections: {errno}; raise the limit of open files (ulimit -n) of the daemon"
            );
        }
        self.spare = None;
        if let Ok(raw) = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: accept4 just opened it for us.
            let socket = unsafe { OwnedFd::from_raw_fd(raw) };
            let text =
                "the daemon has no descriptor left: raise its limit of open files (ulimit -n)";
            deliver(&socket, &Answer::error(ErrorCode::Limit, text));
        } else {
            // Not even that: do not burn the processor over a listener that stays readable.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        self.spare = std::fs::File::open("/dev/null").ok().map(OwnedFd::from);
    }

    fn on_connection(&mut self, socket: OwnedFd) {
        let peer = match Peer::of(socket.as_fd(), self.config.force_no_peer_pidfd) {
            Ok(peer) => peer,
            Err(PeerError::Gone) => return,
            Err(error @ PeerError::ForeignNamespace) => {
                deliver(&socket, &Answer::error(ErrorCode::NotPermitted, error.to_string()));
                return;
            }
            Err(error @ PeerError::Io(_)) => {
                deliver(&socket, &Answer::error(ErrorCode::Io, error.to_string()));
                return;
            }
        };
        let of_user =
            self.connections.values().filter(|other| other.user.uid == peer.user.uid).count();
        if of_user >= CONNECTIONS_PER_USER {
            let text = format!(
                "user {} has {of_user} connections already: close some (one for each process is enough)",
                peer.user.uid
            );
            deliver(&socket, &Answer::error(ErrorCode::Limit, text));
            return;
        }
        self.next_connection += 1;
        let connection = Connection {
            socket,
            user: peer.user,
            pid: peer.pid,
            pidfd: Some(peer.pidfd),
            session: None,
        };
        self.connections.insert(self.next_connection, connection);
    }

    /// Reads one packet of a connection and answers it.
    pub(super) fn on_packet(&mut self, number: u64) -> Result<(), LinkLost> {
        let Some(connection) = self.connections.get(&number) else {
            return Ok(());
        };
        let received =
            receive_packet(connection.socket.as_fd(), &mut self.buffer, Blocking::Return);
        let outcome = match received {
            Ok(received) => match CONTROL.decode::<Request>(&self.buffer[..received.length]) {
                Ok(request) => self.on_request(number, request, received.descriptors),
                Err(error @ FrameError::Version { .. }) => {
                    refuse(ErrorCode::Version, error.to_string())
                }
                Err(error) => refuse(ErrorCode::Invalid, error.to_string()),
            },
            Err(ReceiveError::WouldBlock) => return Ok(()),
            Err(ReceiveError::Closed | ReceiveError::Io(_)) => {
                return self.on_disconnect(number);
            }
            Err(error @ ReceiveError::DescriptorsLost) => {
                refuse(ErrorCode::Limit, format!("the daemon cannot take more: {error}"))
            }
            Err(error) => refuse(ErrorCode::Invalid, error.to_string()),
        };
        self.answer(number, outcome)
    }

    /// Sends what came out of a request, unless that comes later.
    pub(super) fn answer(
        &mut self,
        number: u64,
        outcome: Result<Option<Answer>, Failure>,
    ) -> Result<(), LinkLost> {
        let answer = match outcome {
            Ok(None) => return Ok(()),
            Ok(Some(answer)) => answer,
            Err(Failure::Refused(code, message)) => Answer::error(code, message),
            Err(Failure::Lost(lost)) => return Err(lost),
        };
        let created = answer.created;
        if self.send(number, answer) {
            return created.map_or(Ok(()), |queue| self.creator_knows(queue));
        }
        self.on_disconnect(number)
    }

    /// Sends an answer; `false` if the connection is of no use any more.
    pub(super) fn send(&self, number: u64, answer: Answer) -> bool {
        self.connections.get(&number).is_some_and(|connection| deliver(&connection.socket, &answer))
    }
}

/// A peer that does not take its replies is disconnected: there is one reply for each request, and the socket has room
/// for many.
fn deliver(socket: &OwnedFd, answer: &Answer) -> bool {
    let frame = CONTROL.encode(&answer.reply).or_else(|error| {
        let message = format!("internal error of the daemon ({error}): please report it");
        CONTROL.encode(&Reply::Error { code: ErrorCode::Internal, message })
    });
    let descriptors: Vec<_> = answer.descriptors.iter().map(AsFd::as_fd).collect();
    frame.is_ok_and(|frame| {
        send_packet(socket.as_fd(), &frame, &descriptors, Blocking::Return).is_ok()
    })
}
