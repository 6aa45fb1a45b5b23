//! A private daemon, a client that speaks the bare protocol, and child processes. All of them end with the test.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use ringmain_client::layout::{Geometry, handle_line, mpmc as mpmc_layout};
use ringmain_client::protocol::frame::CONTROL;
use ringmain_client::protocol::{
    Attached, ErrorCode, FRAME_BYTES_MAX, HandleKey, Kind, Memory, QueueInfo, QueueSpec, Reply,
    Request, Role, Status,
};
use ringmain_client::ring::{Consumer, Producer, Region, RingMemory};
use ringmain_client::sync::atomic::Ordering;
use ringmain_client::sys::map::{Access, Mapping, Populate};
use ringmain_client::sys::memory::verify_sealed;
use ringmain_client::sys::packet::{Blocking, receive_packet, send_packet};

/// Everything that is waited for takes milliseconds; this is for a machine that is very busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_ringmain");

/// Waits until `probe` finds something.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

pub(crate) fn is_alive(pid: u32) -> bool {
    // A zombie that nobody has reaped yet is dead for our purposes.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| {
        let state = text.rsplit(')').next().unwrap_or("").trim_start();
        !state.starts_with('Z') && !state.starts_with('X')
    })
}

/// A daemon with a socket of its own.
pub(crate) struct Daemon {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) socket: PathBuf,
    keeper: Option<Child>,
    /// Whether `keeper` is a command around it, whose death it is told by SIGTERM.
    is_wrapped: bool,
    stderr: PathBuf,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Other users connect in some tests.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        Self::start_in(folder, arguments)
    }

    pub(crate) fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        Self::start_under(&[], folder, arguments)
    }

    /// Started by another command, which ends with it.
    pub(crate) fn start_under(
        command: &[&str],
        folder: tempfile::TempDir,
        arguments: &[&str],
    ) -> Self {
        let socket = folder.path().join("ringmain.sock");
        let stderr = folder.path().join("stderr");
        let words = [command, &[BINARY, "serve", "--socket"]].concat();
        let mut keeper = Command::new(words[0])
            .args(&words[1..])
            .arg(&socket)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = keeper.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let is_wrapped = !command.is_empty();
        let daemon = Self { folder, socket, keeper: Some(keeper), is_wrapped, stderr };
        assert!(line.starts_with("ready "), "{line:?} {}", daemon.log());
        assert!(line.contains(daemon.socket.to_str().unwrap()), "{line:?}");
        daemon
    }

    pub(crate) fn keeper_pid(&self) -> u32 {
        self.keeper.as_ref().unwrap().id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub(crate) fn status(&self) -> Status {
        Raw::hello(&self.socket, 77).status()
    }

    /// Kills the broker and waits for the next one.
    pub(crate) fn kill_broker(&self) -> Status {
        let before = self.status();
        signal(before.broker_pid, Signal::SIGKILL);
        self.next_broker(&before)
    }

    pub(crate) fn next_broker(&self, before: &Status) -> Status {
        eventually("the next broker", || {
            let mut raw = Raw::try_connect(&self.socket)?;
            raw.try_ask(&hello(78)).ok()?;
            let (reply, _) = raw.try_ask(&Request::Status).ok()?;
            match reply {
                Reply::Status(status) if status.broker_starts > before.broker_starts => {
                    Some(*status)
                }
                _ => None,
            }
        })
    }

    /// Sends a signal to the keeper and waits for its end.
    pub(crate) fn end(&mut self, with: Signal) -> ExitStatus {
        let keeper = self.keeper.as_mut().unwrap();
        signal(keeper.id(), with);
        let status = eventually("the end of the daemon", || keeper.try_wait().unwrap());
        self.keeper = None;
        status
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        if self.is_wrapped {
            let _ = keeper.kill();
            let _ = keeper.wait();
            eventually("the end of the daemon", || (!self.socket.exists()).then_some(()));
            return;
        }
        let _ = kill(Pid::from_raw(keeper.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(Some(_)) = keeper.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = keeper.kill();
        let _ = keeper.wait();
    }
}

pub(crate) fn hello(session: u64) -> Request {
    Request::Hello { client_version: "test".into(), session, handles: Vec::new() }
}

pub(crate) fn spsc() -> QueueSpec {
    QueueSpec {
        kind: Some(Kind::Spsc),
        slots: Some(64),
        slot_size: Some(64),
        ..QueueSpec::default()
    }
}

pub(crate) fn mpmc() -> QueueSpec {
    QueueSpec {
        kind: Some(Kind::Mpmc),
        slots: Some(64),
        slot_size: Some(64),
        ..QueueSpec::default()
    }
}

/// One connection that speaks the bare protocol.
pub(crate) struct Raw {
    pub(crate) socket: OwnedFd,
}

impl Raw {
    pub(crate) fn try_connect(path: &Path) -> Option<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        let timeout = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket, ReceiveTimeout, &timeout).unwrap();
        setsockopt(&socket, SendTimeout, &timeout).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).ok()?;
        Some(Self { socket })
    }

    pub(crate) fn connect(path: &Path) -> Self {
        Self::try_connect(path).expect("the daemon listens")
    }

    /// Connected, with a session.
    pub(crate) fn hello(path: &Path, session: u64) -> Self {
        let mut raw = Self::connect(path);
        let reply = raw.ask(&hello(session));
        assert!(matches!(reply, Reply::Welcome { .. }), "{reply:?}");
        raw
    }

    pub(crate) fn resume(
        path: &Path,
        session: u64,
        handles: &[HandleKey],
    ) -> (Self, Vec<HandleKey>) {
        let mut raw = Self::connect(path);
        let request =
            Request::Hello { client_version: "test".into(), session, handles: handles.to_vec() };
        match raw.ask(&request) {
            Reply::Welcome { lost, .. } => (raw, lost),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        send_packet(self.socket.as_fd(), bytes, descriptors, Blocking::Wait).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Result<(Reply, Vec<OwnedFd>), String> {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let received = receive_packet(self.socket.as_fd(), &mut buffer, Blocking::Wait)
            .map_err(|error| error.to_string())?;
        let reply = CONTROL.decode(&buffer[..received.length]).map_err(|e| e.to_string())?;
        Ok((reply, received.descriptors))
    }

    pub(crate) fn try_ask(&mut self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), String> {
        let bytes = CONTROL.encode(request).unwrap();
        send_packet(self.socket.as_fd(), &bytes, &[], Blocking::Wait)
            .map_err(|error| error.to_string())?;
        self.receive()
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        self.try_ask(request).unwrap().0
    }

    /// The error that a request is answered with.
    pub(crate) fn refused(&mut self, request: &Request) -> (ErrorCode, String) {
        match self.ask(request) {
            Reply::Error { code, message } => {
                assert!(!message.contains('\n') && !message.is_empty(), "{message:?}");
                (code, message)
            }
            other => panic!("{request:?} was not refused: {other:?}"),
        }
    }

    pub(crate) fn status(&mut self) -> Status {
        match self.ask(&Request::Status) {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn create(&mut self, name: &str, spec: QueueSpec) -> QueueInfo {
        match self.ask(&Request::CreateQueue { name: name.into(), spec }) {
            Reply::Queue(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn info(&mut self, name: &str) -> QueueInfo {
        match self.ask(&Request::QueueInfo { name: name.into() }) {
            Reply::Queue(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn attach(&mut self, name: &str, role: Role) -> Attachment {
        let request = Request::attach(name, role);
        match self.try_ask(&request).unwrap() {
            (Reply::Attached(attached), descriptors) => {
                Attachment::new(*attached, descriptors, role)
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    /// Whether the daemon has closed this connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 1];
        let received = receive_packet(self.socket.as_fd(), &mut buffer, Blocking::Return);
        matches!(received, Err(ringmain_client::sys::packet::ReceiveError::Closed))
    }
}

/// An attached handle with its memory.
pub(crate) struct Attachment {
    pub(crate) attached: Attached,
    pub(crate) mappings: Vec<Mapping>,
}

impl Attachment {
    fn new(attached: Attached, descriptors: Vec<OwnedFd>, role: Role) -> Self {
        assert_eq!(attached.descriptors.len(), descriptors.len());
        let geometry = geometry(&attached);
        let mut mappings = Vec::new();
        for (memory, descriptor) in attached.descriptors.iter().zip(&descriptors) {
            let bytes = match memory {
                Memory::Ring | Memory::Slots => geometry.region_bytes(attached.kind),
                Memory::Control | Memory::ProducerPage | Memory::ConsumerPage => 4096,
                other => panic!("{other:?} on a direct queue"),
            };
            verify_sealed(descriptor.as_fd(), bytes).unwrap();
            let writable = match memory {
                Memory::Control => false,
                Memory::Ring => true,
                Memory::Slots | Memory::ProducerPage => role == Role::Produce,
                Memory::ConsumerPage => role == Role::Consume,
                other => panic!("{other:?} on a direct queue"),
            };
            let read_write =
                Mapping::map(descriptor.as_fd(), bytes, Access::ReadWrite, Populate::Now);
            assert_eq!(read_write.is_ok(), writable, "{memory:?} for {role:?}");
            mappings.push(read_write.unwrap_or_else(|_| {
                Mapping::map(descriptor.as_fd(), bytes, Access::ReadOnly, Populate::Now).unwrap()
            }));
        }
        Self { attached, mappings }
    }

    pub(crate) fn key(&self) -> HandleKey {
        self.attached.key
    }

    pub(crate) fn memory(&self) -> RingMemory {
        let region = |index: usize| {
            let mapping = &self.mappings[index];
            // SAFETY: page-aligned and mapped as long as this value lives; tests keep it longer than the ring.
            unsafe { Region::new(mapping.base(), mapping.len()) }
        };
        match self.attached.kind {
            Kind::Spsc => RingMemory::Spsc {
                control: region(0),
                slots: region(1),
                producer: region(2),
                consumer: region(3),
            },
            Kind::Mpmc => RingMemory::Mpmc { control: region(0), ring: region(1) },
        }
    }

    pub(crate) fn producer(&self) -> Producer {
        Producer::new(self.memory(), geometry(&self.attached), self.key().handle).unwrap()
    }

    pub(crate) fn consumer(&self) -> Consumer {
        Consumer::new(self.memory(), geometry(&self.attached), self.key().handle).unwrap()
    }
}

/// What a handle says about itself that is stopped in the middle of a claim without exchanges.
pub(crate) fn set_inside(memory: &RingMemory, handle: u8, inside: bool) {
    let RingMemory::Mpmc { ring, .. } = memory else { panic!("an mpmc ring") };
    let line = mpmc_layout::HANDLE_LINES + usize::from(handle) * handle_line::BYTES;
    ring.u64_at(line + handle_line::INSIDE).store(u64::from(inside), Ordering::Release);
}

pub(crate) fn geometry(attached: &Attached) -> Geometry {
    let Attached { slots, slot_size, max_message, .. } = *attached;
    Geometry::new(Some(slots), Some(slot_size), Some(max_message)).unwrap()
}

/// A process of its own that does one thing, says so, and waits to be killed.
pub(crate) struct Actor {
    child: Child,
    /// It ends when this is closed, however this process ends.
    _stdin: Option<ChildStdin>,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Actor {
    pub(crate) fn start(socket: &Path, what: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process", "--nocapture"])
            .env(child::SOCKET, socket)
            .env(child::WHAT, what.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test harness may print its own words on the same line.
                if let Some((_, said)) = line.split_once(child::SAYS) {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        Self { child, _stdin: stdin, lines }
    }

    /// Starts it and waits until it has done what it is there for.
    pub(crate) fn started(socket: &Path, what: &[&str]) -> Self {
        let actor = Self::start(socket, what);
        assert_eq!(actor.says(), "ready");
        actor
    }

    pub(crate) fn says(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the child says something")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the child processes do.
pub(crate) mod child {
    use super::*;

    pub(crate) const SOCKET: &str = "RINGMAIN_TEST_SOCKET";
    pub(crate) const WHAT: &str = "RINGMAIN_TEST_CHILD";
    pub(crate) const SAYS: &str = "child says: ";

    fn say(text: &str) {
        println!("\n{SAYS}{text}");
    }

    pub(crate) fn run() {
        let Ok(what) = std::env::var(WHAT) else {
            return;
        };
        let socket = PathBuf::from(std::env::var(SOCKET).unwrap());
        let words: Vec<&str> = what.split(' ').collect();
        match words.as_slice() {
            // Attaches, and then takes or claims something that it never lets go.
            ["hold", name, role] => hold(&socket, name, role),
            // Attaches as a consumer that is in the middle of a take without exchanges.
            ["inside", name] => {
                let mut raw = Raw::hello(&socket, 1);
                let attachment = raw.attach(name, Role::Consume);
                set_inside(&attachment.memory(), attachment.key().handle, true);
                say("ready");
                wait_for_end();
            }
            // Attaches if it may.
            ["join", name] => {
                let mut raw = Raw::hello(&socket, 1);
                let request = Request::attach(*name, Role::Consume);
                let _ = raw.ask(&request);
                say("ready");
                wait_for_end();
            }
            // A brokered queue: receives so many messages and keeps them.
            ["lease", name, count] => {
                let client = ringmain_client::Client::connect(&socket).unwrap();
                let mut consumer = client.brokered_consumer(name, Default::default()).unwrap();
                let held: Vec<_> = (0..count.parse().unwrap())
                    .map(|_| consumer.receive_timeout(PATIENCE).unwrap())
                    .collect();
                say("ready");
                let _ = held;
                wait_for_end();
            }
            // A brokered queue: sends so many messages and waits for nothing.
            ["send", name, count] => {
                let client = ringmain_client::Client::connect(&socket).unwrap();
                let mut producer = client.brokered_producer(name, Default::default()).unwrap();
                for number in 0..count.parse().unwrap() {
                    let _: u32 = number;
                    producer.send(format!("m{number}").as_bytes()).unwrap();
                }
                say("ready");
                wait_for_end();
            }
            // Brokered queues: moves messages from one to the other, each in a transaction, until it is killed.
            ["transform", input, output] => {
                // The broker may be killed meanwhile, and the next one may take long.
                let attach = || -> Result<_, ringmain_client::ClientError> {
                    let client = ringmain_client::Client::connect(&socket)?;
                    let input = client.brokered_consumer(input, Default::default())?;
                    let output = client.brokered_producer(output, Default::default())?;
                    Ok((client, input, output))
                };
                let (client, mut input, mut output) =
                    eventually("the handles of a worker", || attach().ok());
                say("ready");
                loop {
                    let Ok(message) = input.receive_timeout(PATIENCE) else { continue };
                    let mut transaction = client.transaction();
                    transaction.publish(&output, message.payload()).unwrap();
                    transaction.ack(&input, &message).unwrap();
                    transaction.commit(&mut output).unwrap();
                }
            }
            // Has a reply queue, says its name, and asks nothing.
            ["requester", name] => {
                let client = ringmain_client::Client::connect(&socket).unwrap();
                let requester = client.requester(name).unwrap();
                say("ready");
                say(requester.reply_queue());
                wait_for_end();
            }
            // As another user: one request, one answer.
            ["as", uid, request @ ..] => as_user(&socket, uid.parse().unwrap(), request),
            other => panic!("unknown child {other:?}"),
        }
    }

    fn wait_for_end() -> ! {
        let mut line = String::new();
        while std::io::stdin().read_line(&mut line).is_ok_and(|read| read > 0) {
            line.clear();
        }
        std::process::exit(0);
    }

    fn hold(socket: &Path, name: &str, role: &str) {
        let mut raw = Raw::hello(socket, 1);
        match role {
            "produce" => {
                let attachment = raw.attach(name, Role::Produce);
                let mut producer = attachment.producer();
                let reserved = producer.try_reserve(8).unwrap();
                say("ready");
                let _ = reserved;
                wait_for_end();
            }
            "consume" => {
                let attachment = raw.attach(name, Role::Consume);
                let mut consumer = attachment.consumer();
                let taken = consumer.try_take().unwrap();
                say("ready");
                let _ = taken;
                wait_for_end();
            }
            "idle" => {
                let _attachment = raw.attach(name, Role::Consume);
                say("ready");
                wait_for_end();
            }
            other => panic!("{other}"),
        }
    }

    fn as_user(socket: &Path, uid: u32, request: &[&str]) {
        // This thread only, and it is the one that connects: enough for SO_PEERCRED.
        nix::unistd::setgroups(&[]).unwrap();
        nix::unistd::setresgid(uid.into(), uid.into(), uid.into()).unwrap();
        nix::unistd::setresuid(uid.into(), uid.into(), uid.into()).unwrap();
        let mut raw = Raw::hello(socket, 5);
        let name = request.get(1).unwrap_or(&"").to_string();
        let request = match request[0] {
            "produce" => Request::attach(name, Role::Produce),
            "consume" => Request::attach(name, Role::Consume),
            "delete" => Request::DeleteQueue { name },
            "purge" => Request::PurgeQueue { name },
            "redrive" => Request::Redrive { name, count: 0 },
            "info" => Request::QueueInfo { name },
            "list" => Request::ListQueues { after: String::new() },
            "upgrade" => Request::Upgrade { binary: String::new() },
            "create" => Request::CreateQueue { name, spec: mpmc() },
            "create-root-group" => {
                Request::CreateQueue { name, spec: QueueSpec { group: Some("0".into()), ..mpmc() } }
            }
            other => panic!("{other}"),
        };
        match raw.ask(&request) {
            Reply::Error { code, message } => say(&format!("{code:?} {message}")),
            Reply::Queues(queues) => say(&format!("ok {}", queues.len())),
            Reply::Redriven { messages } => say(&format!("ok {messages}")),
            _ => say("ok"),
        }
        wait_for_end();
    }
}
