//! The control connection of one client: one socket, one request at a time, taken up again when it is lost.
//!
//! Data never passes through here. A lost connection harms nothing that is attached: the next request, or the
//! background thread on behalf of a handle that waits, connects again and names the handles that are still in use.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::attachment::Lost;
use super::background::Background;
use super::bells::Bells;
use super::doorbell::PeerDoorbell;
use super::error::ClientError;
use crate::brokered::ShardLinks;
use crate::protocol::frame::CONTROL;
use crate::protocol::{Attached, ErrorCode, FRAME_BYTES_MAX, HandleKey, Reply, Request};
use crate::sys::fork::ForkMark;
use crate::sys::packet::{Blocking, ReceiveError, receive_packet, send_packet};

/// Longest wait for an answer of the daemon.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a request is sent when the connection breaks under it, as it does while the broker is replaced.
const ATTEMPTS: u32 = 3;

/// Longest wait for the answer when a doorbell is given back.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);

/// After a daemon that did not answer, handles are dropped without telling it for this long.
const SICK: Duration = Duration::from_secs(5);

/// What all clones of a client and all of its handles share.
#[derive(Debug)]
pub(crate) struct Inner {
    socket_path: PathBuf,
    session: u64,
    mark: ForkMark,
    state: Mutex<State>,
    pub(super) background: Background,
    pub(super) bells: Bells,
    pub(crate) shard_links: ShardLinks,
}

#[derive(Debug)]
struct State {
    socket: Option<OwnedFd>,
    /// Handles in use, as they are named in the next `Hello`.
    live: BTreeMap<HandleKey, Lost>,
    buffer: Box<[u8]>,
    sick_until: Option<Instant>,
}

/// An answer and what came with it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Why an exchange over one connection failed.
enum Broken {
    /// The daemon went away: worth another attempt.
    Gone {
        /// After the request was sent: it may have been carried out.
        sent: bool,
    },
    /// No other attempt will do better.
    Final(ClientError),
}

impl Inner {
    /// Connects and says hello.
    pub(crate) fn connect(socket_path: PathBuf) -> Result<Arc<Self>, ClientError> {
        let inner = Self {
            socket_path,
            session: random_number()?,
            mark: ForkMark::get()?,
            state: Mutex::new(State {
                socket: None,
                live: BTreeMap::new(),
                buffer: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
                sick_until: None,
            }),
            background: Background::default(),
            bells: Bells::default(),
            shard_links: ShardLinks::default(),
        };
        inner.ensure_connected()?;
        Ok(Arc::new(inner))
    }

    /// Where the daemon listens.
    pub(crate) fn socket_path(&self) -> &Path {
        &self.socket_path
    }

    /// The mark of the process that made this client.
    pub(crate) fn mark(&self) -> ForkMark {
        self.mark
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, ClientError> {
        if self.mark.is_forked() {
            return Err(ClientError::UsedAfterFork);
        }
        // Nothing is left half-done by a panic: a broken exchange has dropped its socket.
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One request and its answer; an error reply becomes [`ClientError::Refused`].
    pub(crate) fn request(&self, request: &Request) -> Result<Answer, ClientError> {
        self.request_with(request, &[])
    }

    /// The same, with descriptors beside the request.
    pub(crate) fn request_with(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, ClientError> {
        let mut state = self.lock()?;
        self.exchange(&mut state, request, descriptors, &mut false)
    }

    /// The same for a request that cannot be repeated without consequence. `done_before` tells from the daemon's error
    /// code that the request was carried out when it was sent over a connection that broke; then the answer is `None`.
    pub(crate) fn request_once(
        &self,
        request: &Request,
        done_before: ErrorCode,
    ) -> Result<Option<Answer>, ClientError> {
        let mut state = self.lock()?;
        let mut repeated = false;
        match self.exchange(&mut state, request, &[], &mut repeated) {
            Err(ClientError::Refused { code, .. }) if repeated && code == done_before => Ok(None),
            result => result.map(Some),
        }
    }

    /// Attaches and remembers the handle in one step, so that no reconnection can miss it.
    pub(crate) fn attach(
        &self,
        request: &Request,
    ) -> Result<(Box<Attached>, Vec<OwnedFd>, Lost), ClientError> {
        let mut state = self.lock()?;
        let answer = self.exchange(&mut state, request, &[], &mut false)?;
        let Reply::Attached(attached) = answer.reply else {
            return Err(unexpected(&answer.reply));
        };
        let lost: Lost = Arc::new(OnceLock::new());
        state.live.insert(attached.key, Arc::clone(&lost));
        Ok((attached, answer.descriptors, lost))
    }

    /// Gives a handle back if the daemon can be told within this time; else it learns it from the next `Hello`, or
    /// from the end of this process.
    pub(crate) fn detach(&self, handle: HandleKey, timeout: Duration) {
        let Ok(mut state) = self.lock() else { return };
        state.live.remove(&handle);
        if state.is_sick() {
            return;
        }
        let result = match state.connected() {
            // A handle that the daemon does not know any more is none to be given back: that answer is as good.
            true => {
                self.converse(&mut state, &Request::Detach { handle }, &[], timeout).map(|_| ())
            }
            // The `Hello` names the handles that are still in use: this one is not among them.
            false => self.open(&mut state, timeout),
        };
        if result.is_err() {
            state.give_up();
        }
    }

    /// Deletes a queue of this session if the daemon can be told within this time; else it goes with the session.
    pub(crate) fn delete_within(&self, name: &str, timeout: Duration) {
        let Ok(mut state) = self.lock() else { return };
        if state.is_sick() {
            return;
        }
        let open = if state.connected() { Ok(()) } else { self.open(&mut state, timeout) };
        let request = Request::DeleteQueue { name: name.to_owned() };
        if open.and_then(|()| self.converse(&mut state, &request, &[], timeout)).is_err() {
            state.give_up();
        }
    }

    /// Gives a doorbell back; `false` if the daemon could not be told.
    pub(super) fn release_doorbell(&self, doorbell: u32) -> bool {
        let Ok(mut state) = self.lock() else { return true };
        if state.is_sick() {
            return false;
        }
        let request = Request::ReleaseDoorbell { doorbell };
        let opened = match state.connected() {
            true => Ok(()),
            false => self.open(&mut state, RELEASE_TIMEOUT),
        };
        // A daemon that does not know the doorbell, or that is older and does not know the request, answers as well.
        let told = opened.and_then(|()| self.converse(&mut state, &request, &[], RELEASE_TIMEOUT));
        match told {
            Ok((reply, _)) => reply == Reply::Done,
            Err(_) => {
                state.give_up();
                false
            }
        }
    }

    fn exchange(
        &self,
        state: &mut State,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        repeated: &mut bool,
    ) -> Result<Answer, ClientError> {
        for _ in 0..ATTEMPTS {
            let opened = match state.connected() {
                true => Ok(()),
                false => self.open(state, ANSWER_TIMEOUT),
            };
            let exchanged =
                opened.and_then(|()| self.converse(state, request, descriptors, ANSWER_TIMEOUT));
            match exchanged {
                Ok((Reply::Error { code, message }, _)) => {
                    return Err(ClientError::Refused { code, message });
                }
                Ok((reply, descriptors)) => {
                    state.sick_until = None;
                    return Ok(Answer { reply, descriptors });
                }
                Err(Broken::Final(error)) => {
                    state.socket = None;
                    return Err(error);
                }
                Err(Broken::Gone { sent }) => {
                    state.socket = None;
                    *repeated |= sent;
                }
            }
        }
        let source =
            io::Error::new(io::ErrorKind::ConnectionReset, "the daemon closed the connection");
        Err(self.unavailable(source))
    }

    /// One packet there, one packet back.
    fn converse(
        &self,
        state: &mut State,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), Broken> {
        let State { socket: Some(socket), buffer, .. } = state else {
            return Err(Broken::Gone { sent: false });
        };
        let protocol = |text: String| Broken::Final(ClientError::Protocol(text));
        let frame = CONTROL.encode(request).map_err(|error| protocol(error.to_string()))?;
        set_timeout(socket, timeout).map_err(|error| Broken::Final(error.into()))?;
        match send_packet(socket.as_fd(), &frame, descriptors, Blocking::Wait) {
            Ok(()) => {}
            Err(error) if is_gone(&error) => return Err(Broken::Gone { sent: false }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Broken::Final(self.no_answer(timeout)));
            }
            Err(error) => return Err(Broken::Final(error.into())),
        }
        let received =
            receive_packet(socket.as_fd(), buffer, Blocking::Wait).map_err(
                |error| match error {
                    ReceiveError::Closed => Broken::Gone { sent: true },
                    ReceiveError::WouldBlock => Broken::Final(self.no_answer(timeout)),
                    ReceiveError::Io(error) => Broken::Final(error.into()),
                    ReceiveError::DescriptorsLost => {
                        Broken::Final(io::Error::other(error.to_string()).into())
                    }
                    other => Broken::Final(ClientError::Protocol(other.to_string())),
                },
            )?;
        let reply = CONTROL
            .decode::<Reply>(&buffer[..received.length])
            .map_err(|error| protocol(error.to_string()))?;
        Ok((reply, received.descriptors))
    }

    /// Connects and says hello, naming the handles in use; those that the daemon does not know are marked.
    fn open(&self, state: &mut State, timeout: Duration) -> Result<(), Broken> {
        let socket = self.dial(timeout).map_err(|error| Broken::Final(self.unavailable(error)))?;
        state.socket = Some(socket);
        let hello = Request::Hello {
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
            session: self.session,
            handles: state.live.keys().copied().collect(),
        };
        match self.converse(state, &hello, &[], timeout) {
            Ok((Reply::Welcome { lost, .. }, _)) => {
                self.forget(state, &lost);
                Ok(())
            }
            Ok((Reply::Error { code, message }, _)) => {
                state.socket = None;
                Err(Broken::Final(ClientError::Refused { code, message }))
            }
            Ok((reply, _)) => {
                state.socket = None;
                Err(Broken::Final(unexpected(&reply)))
            }
            Err(broken) => {
                state.socket = None;
                // The request itself was not sent.
                Err(match broken {
                    Broken::Gone { .. } => Broken::Gone { sent: false },
                    broken => broken,
                })
            }
        }
    }

    fn forget(&self, state: &mut State, lost: &[HandleKey]) {
        for key in lost {
            if let Some(handle) = state.live.remove(key) {
                let _ = handle.set(());
            }
        }
        if !lost.is_empty() {
            // Another daemon counts its doorbells from one again.
            self.background.forget_doorbells();
            self.bells.forget();
        }
    }

    fn dial(&self, timeout: Duration) -> io::Result<OwnedFd> {
        let address = UnixAddr::new(&self.socket_path)?;
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        set_timeout(&socket, timeout)?;
        // A full backlog makes connect wait, at most for the send time-out.
        connect(socket.as_raw_fd(), &address).map_err(|errno| match errno {
            nix::errno::Errno::EAGAIN | nix::errno::Errno::EINPROGRESS => {
                io::Error::new(io::ErrorKind::TimedOut, "too many clients are waiting to connect")
            }
            errno => errno.into(),
        })?;
        Ok(socket)
    }

    /// Connects if there is no connection.
    pub(crate) fn ensure_connected(&self) -> Result<(), ClientError> {
        let mut state = self.lock()?;
        for _ in 0..ATTEMPTS {
            if state.connected() {
                return Ok(());
            }
            match self.open(&mut state, ANSWER_TIMEOUT) {
                Ok(()) => return Ok(()),
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Gone { .. }) => {}
            }
        }
        let source =
            io::Error::new(io::ErrorKind::ConnectionReset, "the daemon closed the connection");
        Err(self.unavailable(source))
    }

    /// Whether there is a connection that the daemon has not closed. Never waits: while a request is under way there is one, as far
    /// as anybody knows.
    pub(super) fn is_connected(&self) -> bool {
        match self.state.try_lock() {
            Ok(mut state) => state.connected(),
            Err(_) => true,
        }
    }

    /// Has a lost connection taken up again in the background. Never waits: a request may be under way.
    pub(crate) fn look_after_connection(self: &Arc<Self>) {
        if self.mark.is_forked() {
            return;
        }
        if !self.is_connected() {
            self.background.reconnect(self);
        }
    }

    /// The doorbell of a peer, if it is known; else it is fetched in the background and rung then.
    pub(crate) fn doorbell(
        self: &Arc<Self>,
        queue: u64,
        doorbell: u32,
        bit: u32,
    ) -> Option<Arc<PeerDoorbell>> {
        self.background.doorbell(self, queue, doorbell, bit)
    }

    fn unavailable(&self, source: io::Error) -> ClientError {
        ClientError::Unavailable { socket: self.socket_path.clone(), source }
    }

    fn no_answer(&self, timeout: Duration) -> ClientError {
        let text = format!("no answer within {} ms", timeout.as_millis());
        self.unavailable(io::Error::new(io::ErrorKind::TimedOut, text))
    }
}

impl State {
    /// Whether the daemon did not answer lately.
    fn is_sick(&self) -> bool {
        self.sick_until.is_some_and(|until| Instant::now() < until)
    }

    /// The daemon did not answer.
    fn give_up(&mut self) {
        self.socket = None;
        self.sick_until = Some(Instant::now() + SICK);
    }

    /// Whether there is a connection that the daemon has not closed, as far as can be told without waiting.
    fn connected(&mut self) -> bool {
        let Some(socket) = &self.socket else {
            return false;
        };
        // A hang-up is reported without being asked for.
        let mut watched = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        let closed = match poll(&mut watched, PollTimeout::ZERO) {
            Ok(ready) => ready > 0,
            // Interrupted: the exchange will tell.
            Err(_) => false,
        };
        if closed {
            self.socket = None;
        }
        !closed
    }
}

/// An answer that does not fit its request.
pub(crate) fn unexpected(reply: &Reply) -> ClientError {
    let mut text = format!("{reply:?}");
    text.truncate(text.char_indices().nth(100).map_or(text.len(), |(at, _)| at));
    ClientError::Protocol(text)
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

fn set_timeout(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let microseconds = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX);
    let time = TimeVal::new(microseconds / 1_000_000, microseconds % 1_000_000);
    setsockopt(socket, sockopt::ReceiveTimeout, &time)?;
    setsockopt(socket, sockopt::SendTimeout, &time)?;
    Ok(())
}

/// A number that nobody else has, and not zero.
pub(crate) fn random_number() -> io::Result<u64> {
    loop {
        let mut bytes = [0_u8; 8];
        // SAFETY: the buffer is valid for its length during the call.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if filled < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        let session = u64::from_ne_bytes(bytes);
        if filled == 8 && session != 0 {
            return Ok(session);
        }
    }
}
