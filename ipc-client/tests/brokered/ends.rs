//! A control thread that hands out brokered handles, and the shard's ends of their rings.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};
use ringmain_client::raw::layout::pair::{link, shard_page};
use ringmain_client::raw::layout::{LAYOUT_VERSION, control, doorbell};
use ringmain_client::raw::pair::{Link, Pair, PairGeometry, ShardPage};
use ringmain_client::raw::protocol::frame::CONTROL;
use ringmain_client::raw::protocol::{
    AttachOptions, Attached, BrokeredHandle, FRAME_BYTES_MAX, HandleKey, Memory, Reply, Request,
};
use ringmain_client::raw::ring::{
    Consumer, Kernel, Producer, Region, TryReceiveError, TrySendError, repair, wake_sleepers,
};
use ringmain_client::raw::sys::datagram::SignalSender;
use ringmain_client::raw::sys::eventfd::EventFd;
use ringmain_client::raw::sys::kernel::HostKernel;
use ringmain_client::raw::sys::map::{Access, Mapping, Populate};
use ringmain_client::raw::sys::memory::{create_sealed, reopen_read_only};
use ringmain_client::raw::sys::packet::{Blocking, receive_packet, send_packet};
use ringmain_client::raw::wire::{Down, Up};
use ringmain_client::{Client, Kind, Role, WakeMode};

/// Sizes and modes of the handles that a test asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) slots: u32,
    pub(crate) slot_size: u32,
    pub(crate) max_message: u32,
    pub(crate) record_slots: u32,
    pub(crate) leases: u32,
    pub(crate) wake_mode: WakeMode,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            slots: 1024,
            slot_size: 256,
            max_message: 16 * 1024,
            record_slots: 256,
            leases: 64,
            wake_mode: wake_mode(),
        }
    }
}

/// Membarrier where this host has it.
pub(crate) fn wake_mode() -> WakeMode {
    match HostKernel::new(WakeMode::Membarrier).may_park() {
        true => WakeMode::Membarrier,
        false => WakeMode::Fence,
    }
}

/// What outlives a broker: the memory of its handles.
#[derive(Debug)]
struct Store {
    sizes: Sizes,
    link: OwnedFd,
    page: OwnedFd,
    bell: OwnedFd,
    attached: AtomicU32,
    handles: Mutex<Vec<HandleKey>>,
    ends: Mutex<Sender<Attach>>,
    detached: Mutex<Vec<HandleKey>>,
    doorbells: Doorbells,
}

type Doorbells = Arc<Mutex<Vec<Doorbell>>>;

/// A doorbell of a client's async handles.
#[derive(Debug)]
struct Doorbell {
    memory: Region,
    sender: SignalSender,
}

impl Doorbell {
    fn ring(&self, bit: u32) {
        let word = doorbell::PENDING + bit as usize / 64 * 8;
        let order = ringmain_client::raw::sync::atomic::Ordering::SeqCst;
        self.memory.u64_at(word).fetch_or(1 << (bit % 64), order);
        self.sender.signal();
    }
}

/// A handle that was given out.
#[derive(Debug)]
pub(crate) struct Attach {
    pub(crate) key: HandleKey,
    pub(crate) options: AttachOptions,
    pub(crate) end: End,
}

/// A daemon as far as clients see it.
pub(crate) struct Daemon {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    attaches: Receiver<Attach>,
    broker: Option<Broker>,
}

/// What dies when a broker is killed.
struct Broker {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

fn map(file: BorrowedFd<'_>, bytes: usize) -> Region {
    let mapping =
        Mapping::map(file, bytes, Access::ReadWrite, Populate::Now).expect("address space");
    // SAFETY: page-aligned, sealed, and mapped until the process ends.
    let region = unsafe { Region::new(mapping.base(), mapping.len()) };
    std::mem::forget(mapping);
    region
}

impl Daemon {
    pub(crate) fn start(sizes: Sizes) -> Self {
        let memory = |bytes| create_sealed("ringmain-test", bytes).expect("memory");
        let (sender, attaches) = channel();
        let store = Store {
            sizes,
            link: memory(link::BYTES),
            page: memory(shard_page::BYTES),
            bell: EventFd::new().expect("a descriptor").into(),
            attached: AtomicU32::new(0),
            handles: Mutex::default(),
            ends: Mutex::new(sender),
            detached: Mutex::default(),
            doorbells: Doorbells::default(),
        };
        let folder = tempfile::tempdir().expect("a folder");
        let mut daemon = Self { folder, store: Arc::new(store), attaches, broker: None };
        daemon.start_broker();
        daemon
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.socket()).expect("the daemon answers")
    }

    /// The end of the handle that was attached last.
    pub(crate) fn attached(&self) -> Attach {
        self.attaches.recv_timeout(Duration::from_secs(20)).expect("somebody attached")
    }

    pub(crate) fn end(&self) -> End {
        self.attached().end
    }

    pub(crate) fn start_broker(&mut self) {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = listen_at(&self.socket());
        let (store, stopped) = (Arc::clone(&self.store), Arc::clone(&stop));
        let thread = std::thread::spawn(move || serve(&listener, &store, &stopped));
        self.broker = Some(Broker { stop, thread });
    }

    /// Every connection breaks, and nobody listens any more.
    pub(crate) fn kill_broker(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.stop.store(true, Ordering::SeqCst);
            broker.thread.join().expect("the broker ends well");
            let _ = std::fs::remove_file(self.socket());
        }
    }

    /// As after the keeper's death: the next broker knows no handle.
    pub(crate) fn forget_handles(&self) {
        self.store.handles.lock().expect("no panic").clear();
    }

    pub(crate) fn detached(&self) -> Vec<HandleKey> {
        self.store.detached.lock().expect("no panic").clone()
    }

    /// The other side of the link.
    pub(crate) fn doorway(&self) -> Doorway {
        let bell = self.store.bell.try_clone().expect("a descriptor");
        Doorway {
            link: Link::new(map(self.store.link.as_fd(), link::BYTES)).expect("long enough"),
            page: ShardPage::new(map(self.store.page.as_fd(), shard_page::BYTES))
                .expect("long enough"),
            bell: EventFd::from_descriptor(bell).expect("an eventfd"),
            kernel: HostKernel::new(self.store.sizes.wake_mode),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill_broker();
    }
}

fn listen_at(path: &Path) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    bind(listener.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("bind");
    listen(&listener, Backlog::new(16).expect("few")).expect("listen");
    listener
}

fn serve(listener: &OwnedFd, store: &Arc<Store>, stop: &AtomicBool) {
    let mut connections: Vec<OwnedFd> = Vec::new();
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    while !stop.load(Ordering::SeqCst) {
        let mut watched: Vec<PollFd<'_>> = std::iter::once(listener)
            .chain(&connections)
            .map(|descriptor| PollFd::new(descriptor.as_fd(), PollFlags::POLLIN))
            .collect();
        let _ = poll(&mut watched, PollTimeout::from(5_u8));
        let ready: Vec<bool> = watched.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let mut index = 0;
        connections.retain(|connection| {
            index += 1;
            !ready[index] || answer(connection, store, &mut buffer)
        });
        while let Ok(raw) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the descriptor was just created and belongs to nobody else.
            connections.push(unsafe { OwnedFd::from_raw_fd(raw) });
        }
    }
}

fn answer(connection: &OwnedFd, store: &Arc<Store>, buffer: &mut [u8]) -> bool {
    let Ok(received) = receive_packet(connection.as_fd(), buffer, Blocking::Return) else {
        return false;
    };
    let request: Request = CONTROL.decode(&buffer[..received.length]).expect("a request");
    let (reply, descriptors) = reply(request, received.descriptors, store);
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let packet = CONTROL.encode(&reply).expect("short");
    send_packet(connection.as_fd(), &packet, &borrowed, Blocking::Wait).is_ok()
}

fn reply(request: Request, beside: Vec<OwnedFd>, store: &Arc<Store>) -> (Reply, Vec<OwnedFd>) {
    let reply = match request {
        Request::Hello { handles, .. } => {
            let known = store.handles.lock().expect("no panic");
            Reply::Welcome {
                version: "test".to_owned(),
                broker_generation: 1,
                lost: handles.into_iter().filter(|key| !known.contains(key)).collect(),
            }
        }
        Request::Attach { name, role, options } => return attach(store, &name, role, options),
        Request::Detach { handle } => {
            store.detached.lock().expect("no panic").push(handle);
            Reply::Done
        }
        Request::RegisterDoorbell => {
            let [memory, socket] = <[_; 2]>::try_from(beside).expect("two descriptors");
            let bell = Doorbell {
                memory: map(memory.as_fd(), doorbell::BYTES),
                sender: SignalSender::from_descriptor(socket).expect("a datagram socket"),
            };
            let mut doorbells = store.doorbells.lock().expect("no panic");
            doorbells.push(bell);
            Reply::Doorbell { doorbell: u32::try_from(doorbells.len()).expect("few") }
        }
        _ => Reply::Done,
    };
    (reply, Vec::new())
}

fn attach(
    store: &Arc<Store>,
    name: &str,
    role: Role,
    options: AttachOptions,
) -> (Reply, Vec<OwnedFd>) {
    let sizes = store.sizes;
    let number = store.attached.fetch_add(1, Ordering::SeqCst);
    let key = HandleKey { queue: 7, handle: u8::try_from(number + 1).expect("few"), epoch: 3 };
    let leases = if role == Role::Produce { 0 } else { sizes.leases };
    let Sizes { slots, slot_size, max_message, record_slots, .. } = sizes;
    let geometry =
        PairGeometry::new(role, slots, slot_size, max_message, record_slots, leases).expect("fits");
    let client = create_sealed("ringmain-test", geometry.client_file_bytes()).expect("memory");
    let shard = create_sealed("ringmain-test", geometry.shard_file_bytes()).expect("memory");
    let doorbells = Arc::clone(&store.doorbells);
    let end = End::new(geometry, &client, &shard, key, number, sizes.wake_mode, doorbells);
    repair::init_control(&end.pair.control(), key.queue, Kind::Spsc, &geometry.up());
    store.handles.lock().expect("no panic").push(key);
    store.ends.lock().expect("no panic").send(Attach { key, options, end }).expect("a test");
    let read_only = |file: &OwnedFd| reopen_read_only(file.as_fd()).expect("/proc");
    let clone = |file: &OwnedFd| file.try_clone().expect("a descriptor");
    let brokered = BrokeredHandle {
        durable: name != "memory",
        record_slots,
        leases,
        ready_index: number,
        shard: 0,
        named: None,
        group_created: false,
    };
    let attached = Attached {
        key,
        layout_version: LAYOUT_VERSION,
        kind: Kind::Mpmc,
        slots,
        slot_size,
        max_message,
        wake_mode: sizes.wake_mode,
        brokered: (name != "direct").then_some(brokered),
        descriptors: vec![
            Memory::ClientFile,
            Memory::ShardFile,
            Memory::Link,
            Memory::ShardPage,
            Memory::ShardBell,
        ],
    };
    let descriptors = vec![
        client,
        read_only(&shard),
        clone(&store.link),
        read_only(&store.page),
        clone(&store.bell),
    ];
    (Reply::Attached(Box::new(attached)), descriptors)
}

/// The shard's side of a session's link.
pub(crate) struct Doorway {
    pub(crate) link: Link,
    pub(crate) page: ShardPage,
    bell: EventFd,
    kernel: HostKernel,
}

impl Doorway {
    /// Sleeps until a client rings, unless `ready` finds something behind the barrier. Panics if nobody rings for so long that a
    /// ring must have been lost.
    pub(crate) fn sleep(&self, stop: &AtomicBool, ready: impl FnOnce() -> bool) {
        self.page.set_asleep(true);
        self.kernel.heavy_barrier();
        if !ready() {
            let mut watched = [PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
            let waited = poll(&mut watched, PollTimeout::from(20_000_u16));
            let rung = waited.is_ok_and(|count| count > 0) || stop.load(Ordering::SeqCst);
            assert!(rung, "a ring of the shard's bell was lost");
            self.bell.drain();
        }
        self.page.set_asleep(false);
    }

    /// As a client would.
    pub(crate) fn ring(&self) {
        self.bell.signal();
    }
}

/// The shard's ends of a handle's rings.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) pair: Pair,
    pub(crate) key: HandleKey,
    pub(crate) ready_index: u32,
    pub(crate) up: Consumer,
    pub(crate) down: Producer,
    kernel: HostKernel,
    doorbells: Doorbells,
}

impl End {
    fn new(
        geometry: PairGeometry,
        client: &OwnedFd,
        shard: &OwnedFd,
        key: HandleKey,
        ready_index: u32,
        wake_mode: WakeMode,
        doorbells: Doorbells,
    ) -> Self {
        let client = map(client.as_fd(), geometry.client_file_bytes());
        let shard = map(shard.as_fd(), geometry.shard_file_bytes());
        let pair = Pair::new(geometry, client, shard).expect("the right lengths");
        Self::over(pair, key, ready_index, HostKernel::new(wake_mode), doorbells)
    }

    fn over(
        pair: Pair,
        key: HandleKey,
        ready_index: u32,
        kernel: HostKernel,
        doorbells: Doorbells,
    ) -> Self {
        let up = Consumer::new(pair.up(), pair.geometry().up(), key.handle).expect("in order");
        let down = Producer::new(pair.down(), pair.geometry().down(), key.handle).expect("so");
        Self { pair, key, ready_index, up, down, kernel, doorbells }
    }

    /// As another shard would take it over.
    pub(crate) fn taken_over(self) -> Self {
        Self::over(self.pair, self.key, self.ready_index, self.kernel, self.doorbells)
    }

    /// Sends bytes to the client; whether there was room.
    pub(crate) fn try_send(&mut self, metadata: &[u8], bytes: &[u8]) -> bool {
        match self.down.try_send(0, metadata, bytes) {
            Ok(_) => true,
            Err(TrySendError::Full) => false,
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Sends a record that has room, and wakes the client.
    pub(crate) fn tell(&mut self, record: &Down) {
        assert!(self.try_send(&[], record.encode().as_ref()), "the ring is full");
        self.wake();
    }

    /// Wakes the client, wherever it sleeps.
    pub(crate) fn wake(&self) {
        self.kernel.light_barrier();
        for park in [self.down.peer_park(), self.up.peer_park()] {
            if park.any_sleeper() {
                wake_sleepers(park, &self.kernel, 1);
                if let Some((doorbell, bit)) = park.doorbell_of(0) {
                    let doorbells = self.doorbells.lock().expect("no panic");
                    doorbells[doorbell as usize - 1].ring(bit);
                }
            }
        }
    }

    /// The next message in the lane: its position, metadata and payload.
    pub(crate) fn try_take(&mut self) -> Option<(u64, Vec<u8>, Vec<u8>)> {
        let taken = match self.up.try_take() {
            Ok(taken) => taken,
            Err(TryReceiveError::Empty) => return None,
            Err(error) => panic!("{error:?}"),
        };
        let mut metadata = vec![0; taken.metadata_length()];
        self.up.read_metadata(&taken, &mut metadata);
        let mut payload = vec![0; taken.length()];
        self.up.read(&taken, 0, &mut payload);
        let position = taken.sequence();
        self.up.release(taken);
        Some((position, metadata, payload))
    }

    /// The next request of a consumer; its slot is given back.
    pub(crate) fn try_request(&mut self) -> Option<Up> {
        let (_, _, bytes) = self.try_take()?;
        self.wake();
        Some(Up::decode(&bytes).expect("a request"))
    }

    pub(crate) fn request(&mut self) -> Up {
        for _ in 0..200_000 {
            if let Some(request) = self.try_request() {
                return request;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        panic!("no request came");
    }

    /// As the daemon closes a queue.
    pub(crate) fn close(&self, value: u64) {
        self.pair
            .control()
            .u64_at(control::CLOSED)
            .store(value, ringmain_client::raw::sync::atomic::Ordering::Release);
        self.wake();
    }
}
