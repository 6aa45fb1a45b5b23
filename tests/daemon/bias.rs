//! Which handle has its side of a direct mpmc queue to itself, and what follows from it.

use std::sync::atomic::{AtomicBool, Ordering as Order};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use ringmain_client::protocol::frame::CONTROL;
use ringmain_client::protocol::{DeliverySpec, ErrorCode, Overflow, Reply, Request, Role};
use ringmain_client::ring::{Consumer, Producer, TryReceiveError, TrySendError, bias};
use ringmain_client::sys::membarrier;
use ringmain_client::{Client, ClientError, SendError};

use crate::support::*;

/// Beside a biased consumer.
const PURGES: u32 = 200;

/// Without it nobody is biased.
fn has_membarrier() -> bool {
    membarrier::register()
}

fn granted(of: &Attachment, role: Role) -> Option<u8> {
    bias::granted(&of.memory(), role)
}

fn edit(name: &str, overflow: Overflow) -> Request {
    let delivery = DeliverySpec { overflow: Some(overflow), ..DeliverySpec::default() };
    Request::EditQueue { name: name.into(), delivery }
}

fn purge(name: &str) -> Request {
    Request::PurgeQueue { name: name.into() }
}

#[test]
fn a_side_is_biased_towards_its_only_handle() {
    if !has_membarrier() {
        return;
    }
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let produces = raw.attach("m", Role::Produce);
    let consumes = raw.attach("m", Role::Consume);
    let only = [(Role::Produce, produces.key().handle), (Role::Consume, consumes.key().handle)];
    let is_alone =
        |role| granted(&produces, role) == Some(only[usize::from(role == Role::Consume)].1);
    let mut keys = vec![produces.key(), consumes.key()];
    for (role, _) in only {
        assert!(is_alone(role));
        // It goes well.
        let second = raw.attach("m", role);
        assert_eq!(granted(&produces, role), None);
        let third = raw.attach("m", role);
        assert_eq!(raw.ask(&Request::Detach { handle: second.key() }), Reply::Done);
        assert_eq!(granted(&produces, role), None);
        assert_eq!(raw.ask(&Request::Detach { handle: third.key() }), Reply::Done);
        assert!(is_alone(role));
        // It dies, with a slot in hand.
        let mut producer = produces.producer();
        producer.try_send(0, &[], b"x").unwrap();
        let what = if role == Role::Produce { "produce" } else { "consume" };
        let child = Actor::started(&daemon.socket, &["hold", "m", what]);
        assert_eq!(granted(&produces, role), None);
        child.kill();
        eventually("the bias comes back", || is_alone(role).then_some(()));
        // The broker dies while there are one, two, and one.
        let broker = daemon.kill_broker();
        assert_eq!(broker.handles, 2);
        assert!(is_alone(role));
        (raw, _) = Raw::resume(&daemon.socket, 1, &keys);
        let second = raw.attach("m", role);
        daemon.kill_broker();
        assert_eq!(granted(&produces, role), None);
        keys.push(second.key());
        drop(Raw::resume(&daemon.socket, 1, &keys));
        assert_eq!(granted(&produces, role), None);
        // The client has forgotten one: it was given back while there was no broker.
        keys.pop();
        daemon.kill_broker();
        (raw, _) = Raw::resume(&daemon.socket, 1, &keys);
        assert!(is_alone(role));
    }
    // Whoever was alone goes: the next one is.
    let second = raw.attach("m", Role::Produce);
    assert_eq!(raw.ask(&Request::Detach { handle: produces.key() }), Reply::Done);
    assert_eq!(granted(&second, Role::Produce), Some(second.key().handle));
    let before = daemon.status();
    assert_eq!(raw.ask(&Request::Upgrade { binary: String::new() }), Reply::Done);
    daemon.next_broker(&before);
    assert_eq!(granted(&second, Role::Produce), Some(second.key().handle));
    let (mut raw, _) = Raw::resume(&daemon.socket, 1, &[consumes.key()]);
    assert_eq!(granted(&second, Role::Produce), None);
    assert_eq!(raw.info("m").handles.len(), 1);
}

#[test]
fn rings_with_fences_and_for_one_of_each_are_not_biased() {
    let daemon = Daemon::start_with(&["--force-no-membarrier"]);
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    raw.create("s", spsc());
    for name in ["m", "s"] {
        let produces = raw.attach(name, Role::Produce);
        let consumes = raw.attach(name, Role::Consume);
        assert_eq!(granted(&produces, Role::Produce), None);
        assert_eq!(granted(&consumes, Role::Consume), None);
    }
}

/// A producer and a consumer at full speed, both alone on their sides unless the test has others attach.
struct Traffic {
    stop: AtomicBool,
}

impl Traffic {
    /// Runs `meanwhile` beside them. Everything arrives once and in order, but for so many messages as that says.
    fn run(produces: &Attachment, consumes: &Attachment, meanwhile: impl FnOnce() -> u64) {
        let traffic = Self { stop: AtomicBool::new(false) };
        let (sent, received) = std::thread::scope(|scope| {
            let (producer, consumer) = (produces.producer(), consumes.consumer());
            let sender = scope.spawn(|| traffic.send(producer.with_bias()));
            let receiver = scope.spawn(|| traffic.receive(consumer.with_bias()));
            let taken = meanwhile();
            traffic.stop.store(true, Order::SeqCst);
            (sender.join().unwrap(), receiver.join().unwrap() + taken)
        });
        let mut consumer = consumes.consumer();
        let mut left = 0;
        while consumer.try_take().is_ok() {
            left += 1;
        }
        assert_eq!(received + left, sent);
    }

    fn send(&self, mut producer: Producer) -> u64 {
        let mut sent = 0_u64;
        while !self.stop.load(Order::Relaxed) {
            match producer.try_send(0, &[], &sent.to_le_bytes()) {
                Ok(_) => sent += 1,
                Err(TrySendError::Full) => std::thread::yield_now(),
                Err(error) => panic!("{error:?}"),
            }
        }
        sent
    }

    fn receive(&self, mut consumer: Consumer) -> u64 {
        let (mut received, mut next) = (0, 0);
        while !self.stop.load(Order::Relaxed) {
            match consumer.try_take() {
                Ok(taken) => {
                    let mut bytes = [0; 8];
                    consumer.read(&taken, 0, &mut bytes);
                    let number = u64::from_le_bytes(bytes);
                    assert!(number >= next, "{number} after {next}");
                    next = number + 1;
                    received += 1;
                    consumer.release(taken);
                }
                Err(TryReceiveError::Empty) => std::thread::yield_now(),
                Err(error) => panic!("{error:?}"),
            }
        }
        received
    }
}

#[test]
fn a_purge_takes_its_share_beside_a_biased_consumer() {
    if !has_membarrier() {
        return;
    }
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let (produces, consumes) = (raw.attach("m", Role::Produce), raw.attach("m", Role::Consume));
    // More to do for one processor than it can: a consumer in the middle of a take has to wait for it, while the broker has it.
    let own = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| own.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    sched_setaffinity(Pid::from_raw(raw.status().broker_pid.cast_signed()), &one).unwrap();
    // For this thread and those that it starts.
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let busy = AtomicBool::new(true);
    let mut refused = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while busy.load(Order::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Traffic::run(&produces, &consumes, || {
            let mut purged = 0;
            for _ in 0..PURGES {
                std::thread::sleep(Duration::from_millis(3));
                match raw.ask(&purge("m")) {
                    Reply::Purged { messages } => purged += messages,
                    Reply::Error { code: ErrorCode::Busy, .. } => refused += 1,
                    other => panic!("{other:?}"),
                }
                assert_eq!(granted(&consumes, Role::Consume), Some(consumes.key().handle));
            }
            purged
        });
        busy.store(false, Order::Relaxed);
    });
    // Others may have kept the consumer off its processor for a long time, now and then.
    assert!(refused * 20 <= PURGES, "{refused} of {PURGES} purges were refused");
}

#[test]
fn others_and_brokers_come_and_go_beside_biased_handles() {
    if !has_membarrier() {
        return;
    }
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let (produces, consumes) = (raw.attach("m", Role::Produce), raw.attach("m", Role::Consume));
    let keys = [produces.key(), consumes.key()];
    let stop = AtomicBool::new(false);
    Traffic::run(&produces, &consumes, || {
        std::thread::scope(|scope| {
            // Attached by somebody who gives the handles back again, if the broker lives so long.
            scope.spawn(|| {
                while !stop.load(Order::Relaxed) {
                    let Some(mut raw) = Raw::try_connect(&daemon.socket) else { continue };
                    let mut all = || -> Result<(), String> {
                        raw.try_ask(&hello(2))?;
                        loop {
                            for role in [Role::Produce, Role::Consume] {
                                let (reply, _) = raw.try_ask(&Request::attach("m", role))?;
                                let Reply::Attached(attached) = reply else {
                                    return Err(format!("{reply:?}"));
                                };
                                raw.try_ask(&Request::Detach { handle: attached.key })?;
                            }
                            if stop.load(Order::Relaxed) {
                                return Ok(());
                            }
                        }
                    };
                    let _ = all();
                }
            });
            for _ in 0..6 {
                std::thread::sleep(Duration::from_millis(20));
                daemon.kill_broker();
                // As the client does: what it has stays its own.
                assert!(Raw::resume(&daemon.socket, 1, &keys).1.is_empty());
            }
            stop.store(true, Order::Relaxed);
        });
        0
    });
    drop(Raw::hello(&daemon.socket, 2));
    for (attachment, role) in [(&produces, Role::Produce), (&consumes, Role::Consume)] {
        eventually("the bias is back", || {
            (granted(attachment, role) == Some(attachment.key().handle)).then_some(())
        });
    }
}

#[test]
fn who_may_drop_ends_the_bias_of_consumers_for_good() {
    if !has_membarrier() {
        return;
    }
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let (produces, consumes) = (raw.attach("m", Role::Produce), raw.attach("m", Role::Consume));
    let (producer, consumer) = (produces.key().handle, consumes.key().handle);
    // An edit that is refused changes nothing.
    set_inside(&consumes.memory(), consumer, true);
    let (code, text) = raw.refused(&edit("m", Overflow::DropOldest));
    assert_eq!(code, ErrorCode::Busy);
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    assert_eq!(consumes.memory().overflow(), Overflow::Block);
    assert_eq!(granted(&consumes, Role::Consume), Some(consumer));
    set_inside(&consumes.memory(), consumer, false);
    for overflow in [Overflow::Reject, Overflow::Block] {
        assert!(matches!(raw.ask(&edit("m", overflow)), Reply::Queue(_)));
        assert_eq!(granted(&consumes, Role::Consume), Some(consumer));
    }
    for overflow in [Overflow::DropOldest, Overflow::Block] {
        assert!(matches!(raw.ask(&edit("m", overflow)), Reply::Queue(_)));
        assert_eq!(consumes.memory().overflow(), overflow);
        assert_eq!(granted(&consumes, Role::Consume), None);
        assert_eq!(granted(&consumes, Role::Produce), Some(producer));
    }
    assert_eq!(raw.ask(&Request::Detach { handle: consumes.key() }), Reply::Done);
    let consumes = raw.attach("m", Role::Consume);
    assert_eq!(granted(&consumes, Role::Consume), None);
    daemon.kill_broker();
    assert_eq!(granted(&consumes, Role::Consume), None);
    assert_eq!(granted(&consumes, Role::Produce), Some(producer));
    // The rule from the beginning.
    let (mut raw, _) = Raw::resume(&daemon.socket, 1, &[]);
    let delivery = DeliverySpec { overflow: Some(Overflow::DropOldest), ..Default::default() };
    raw.create("d", ringmain_client::protocol::QueueSpec { delivery, ..mpmc() });
    let consumes = raw.attach("d", Role::Consume);
    assert_eq!(granted(&consumes, Role::Consume), None);
}

#[test]
fn nobody_overtakes_a_handle_that_is_stopped_in_the_middle_of_a_claim() {
    if !has_membarrier() {
        return;
    }
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let (produces, consumes) = (raw.attach("m", Role::Produce), raw.attach("m", Role::Consume));
    let (producer, consumer) = (produces.key().handle, consumes.key().handle);
    produces.producer().try_send(0, &[], b"x").unwrap();
    let memory = produces.memory();

    set_inside(&memory, consumer, true);
    let (code, text) = raw.refused(&purge("m"));
    assert_eq!(code, ErrorCode::Busy);
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    assert!(text.contains("continue or end it"), "{text}");
    assert_eq!(granted(&consumes, Role::Consume), Some(consumer));
    set_inside(&memory, consumer, false);
    assert_eq!(raw.ask(&purge("m")), Reply::Purged { messages: 1 });

    // A newcomer waits for some time, and then says for whom.
    let client = Client::connect(&daemon.socket).unwrap();
    set_inside(&memory, producer, true);
    match client.producer("m") {
        Err(ClientError::Refused { code: ErrorCode::Busy, message }) => {
            assert!(message.contains(&format!("handle {producer} ")), "{message}");
            assert!(message.contains("ringmain queue info m"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(granted(&produces, Role::Produce), Some(producer));
    std::thread::scope(|scope| {
        let newcomer = scope.spawn(|| client.producer("m").unwrap().try_send(b"y").unwrap());
        eventually("the newcomer is attached", || (raw.info("m").producers == 2).then_some(()));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!newcomer.is_finished());
        assert_eq!(raw.info("m").used_slots, 0);
        set_inside(&memory, producer, false);
        newcomer.join().unwrap();
    });
    assert_eq!(raw.info("m").used_slots, 1);
    // Nobody waits in a queue that is gone.
    set_inside(&memory, producer, true);
    std::thread::scope(|scope| {
        let newcomer = scope.spawn(|| client.producer("m").map(|mut it| it.try_send(b"z")));
        eventually("the newcomer is attached", || (raw.info("m").producers == 2).then_some(()));
        assert_eq!(raw.ask(&Request::DeleteQueue { name: "m".into() }), Reply::Done);
        let answer = newcomer.join().unwrap();
        assert!(matches!(answer, Ok(Err(SendError::Closed(_)))), "{answer:?}");
    });
}

#[test]
fn who_died_in_the_middle_of_a_take_keeps_nobody_from_purging() {
    if !has_membarrier() {
        return;
    }
    let daemon = Daemon::start();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("stopped", mpmc());
    raw.create("m", mpmc());
    let consumes = raw.attach("stopped", Role::Consume);
    set_inside(&consumes.memory(), consumes.key().handle, true);
    let child = Actor::started(&daemon.socket, &["inside", "m"]);
    let mut other = Raw::hello(&daemon.socket, 2);
    let broker = daemon.status().broker_pid;
    // Both purges in one round of the broker, in which the child dies while the first one waits in vain.
    signal(broker, Signal::SIGSTOP);
    raw.send_bytes(&CONTROL.encode(&purge("stopped")).unwrap(), &[]);
    other.send_bytes(&CONTROL.encode(&purge("m")).unwrap(), &[]);
    signal(broker, Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(10));
    child.kill();
    let (reply, _) = raw.receive().unwrap();
    assert!(matches!(reply, Reply::Error { code: ErrorCode::Busy, .. }), "{reply:?}");
    let (reply, _) = other.receive().unwrap();
    assert_eq!(reply, Reply::Purged { messages: 0 });
    assert_eq!(raw.info("m").handles.len(), 0);
}
