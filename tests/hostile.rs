//! A member of a queue that writes chosen and random words into everything it may write, with a real daemon: the
//! daemon stays as it is, honest members of the same queue get typed errors, and other queues notice nothing.

#[allow(dead_code)]
#[path = "daemon/support.rs"]
mod support;

use std::io::{BufRead, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringmain_client::layout::{mpmc, slot, spsc_page};
use ringmain_client::protocol::{Kind, Reply, Request, Role};
use ringmain_client::ring::{Region, RingMemory};
use ringmain_client::sync::atomic::Ordering as RingOrdering;
use ringmain_client::{Client, HandleOptions, ReceiveError, SendError, WaitPolicy};

use support::{Attachment, Daemon, Raw, eventually};

const SOCKET: &str = "RINGMAIN_TEST_SOCKET";
const ATTACK: &str = "RINGMAIN_TEST_ATTACK";
const SAYS: &str = "attacker: ";

/// Rounds of each kind of attack, and words that one round writes.
const ROUNDS: u64 = 6;
const WORDS: u64 = 8_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

/// The regions that a member may write, each with the offsets that matter.
fn targets(attachment: &Attachment, role: Role) -> Vec<(Region, Vec<usize>)> {
    let slots = |first: usize| {
        let size = usize::try_from(attachment.attached.slot_size).unwrap();
        (0..usize::try_from(attachment.attached.slots).unwrap())
            .flat_map(move |index| [slot::WORD, slot::HEADER].map(|at| first + index * size + at))
    };
    let page = vec![
        spsc_page::POSITION,
        spsc_page::TAKEN,
        spsc_page::REDELIVERED,
        spsc_page::SHOWN,
        spsc_page::SLEEPERS,
        spsc_page::EVENT,
        spsc_page::HANDLE_LINE + 0x20,
    ];
    match (attachment.memory(), role) {
        (RingMemory::Mpmc { ring, .. }, _) => {
            let mut offsets = vec![
                mpmc::TAIL,
                mpmc::HEAD,
                mpmc::CONSUMER_SLEEPERS,
                mpmc::PRODUCER_SLEEPERS,
                mpmc::RETURNED,
                mpmc::FAULT,
                mpmc::CONSUMER_EVENT,
                mpmc::PRODUCER_EVENT,
            ];
            offsets.extend((0..8).map(|line| mpmc::HANDLE_LINES + line * 0x80 + 0x20));
            offsets.extend(slots(mpmc::SLOTS));
            vec![(ring, offsets)]
        }
        (RingMemory::Spsc { slots: region, producer, .. }, Role::Produce) => {
            vec![(region, slots(0).collect()), (producer, page)]
        }
        (RingMemory::Spsc { consumer, .. }, Role::Consume) => vec![(consumer, page)],
    }
}

/// A plausible or a random value.
fn value(old: u64, random: &mut Random) -> u64 {
    let lap = random.next() % 4;
    let n = [0, 1, 2, 3, 16, 17, (1 << 17) - 1][random.below(7)];
    let word = lap << 28 | n << 11 | (random.next() % 8) << 3 | (random.next() % 8);
    let near = random.next() % 80;
    let choices = [
        random.next(),
        word,
        word,
        old ^ 1 << random.below(64),
        old.wrapping_add(near),
        old.wrapping_sub(near),
        near,
        0,
        u64::MAX - near,
    ];
    choices[random.below(choices.len())]
}

/// The attacker: this binary again, told by the environment what to be.
#[test]
fn attacker_process() {
    let (Ok(socket), Ok(attack)) = (std::env::var(SOCKET), std::env::var(ATTACK)) else {
        return;
    };
    let words: Vec<&str> = attack.split(' ').collect();
    let [name, role, seed] = words[..] else { panic!("{attack}") };
    let role = if role == "produce" { Role::Produce } else { Role::Consume };
    let mut random = Random(seed.parse().unwrap());
    let mut raw = Raw::hello(Path::new(&socket), random.next());
    let attachment = raw.attach(name, role);
    let targets = targets(&attachment, role);
    println!("\n{SAYS}ready");
    for count in 0..WORDS {
        let (region, offsets) = &targets[random.below(targets.len())];
        let at = offsets[random.below(offsets.len())];
        let word = region.u64_at(at);
        word.store(value(word.load(RingOrdering::Relaxed), &mut random), RingOrdering::Relaxed);
        if let (RingMemory::Mpmc { ring, .. }, 0) = (attachment.memory(), count % 16) {
            // Hides what the others have seen, so that they go on.
            ring.u64_at(mpmc::FAULT).store(0, RingOrdering::Relaxed);
        }
        if count % 64 == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    println!("\n{SAYS}done");
    // Until it is killed, or the test is gone.
    let _ = std::io::stdin().read(&mut [0]);
}

struct Attacker {
    child: Child,
    output: std::io::BufReader<ChildStdout>,
}

impl Attacker {
    fn start(daemon: &Daemon, name: &str, role: &str, seed: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "attacker_process", "--nocapture"])
            .env(SOCKET, &daemon.socket)
            .env(ATTACK, format!("{name} {role} {seed}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut attacker = Self { child, output };
        attacker.wait_for("ready");
        attacker
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(&format!("{SAYS}{word}")) {
            line.clear();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "the attacker ended before it said {word}");
        }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The honest member next to the attacker: whatever it does is answered.
fn honest(client: &Client, name: &str, role: Option<Role>, stop: &AtomicBool) -> u64 {
    let mut operations = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut producer = (role != Some(Role::Consume)).then(|| client.producer(name).ok());
        let mut consumer = (role != Some(Role::Produce)).then(|| client.consumer(name).ok());
        let mut buffer = Vec::new();
        for round in 0..64usize {
            operations += 1;
            if let Some(Some(producer)) = &mut producer {
                let payload = vec![7; round * 5];
                match producer.send_timeout(&payload, Duration::from_micros(100)) {
                    Ok(_) | Err(SendError::Timeout | SendError::Full) => {}
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
            if let Some(Some(consumer)) = &mut consumer {
                match consumer.receive_timeout(&mut buffer, Duration::from_micros(100)) {
                    Ok(received) => assert_eq!(received.length, buffer.len()),
                    Err(ReceiveError::Timeout | ReceiveError::Empty) => {}
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
    }
    operations
}

/// Asks for everything that the daemon reads or writes in an attacked ring. A refusal is an answer.
fn ask_everything(raw: &mut Raw, name: &str) {
    let info = raw.info(name);
    assert!(info.head <= info.tail && info.used_slots <= u64::from(info.slots), "{info:?}");
    for request in [
        Request::PurgeQueue { name: name.into() },
        Request::ListQueues { after: String::new() },
        Request::Status,
    ] {
        let (reply, _) = raw.try_ask(&request).expect("the daemon answers");
        if let Reply::Error { message, .. } = reply {
            assert!(!message.contains('\n') && !message.is_empty(), "{message:?}");
        }
    }
}

/// One round: the attacker attacks, an honest member works, the daemon looks; then the attacker dies, the daemon repairs,
/// and the queue is deleted.
fn attack(daemon: &Daemon, kind: Kind, role: &str, seed: u64) {
    let name = format!("target-{kind:?}-{role}").to_lowercase();
    let mut raw = Raw::hello(&daemon.socket, 1000 + seed);
    let spec = match kind {
        Kind::Spsc => support::spsc(),
        Kind::Mpmc => support::mpmc(),
    };
    raw.create(&name, spec);
    let mut attacker = Attacker::start(daemon, &name, role, seed);
    let peer = match (kind, role) {
        (Kind::Mpmc, _) => None,
        (Kind::Spsc, "produce") => Some(Role::Consume),
        (Kind::Spsc, _) => Some(Role::Produce),
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let client = Client::connect(&daemon.socket).unwrap();
            honest(&client, &name, peer, &stop)
        });
        for _ in 0..20 {
            ask_everything(&mut raw, &name);
            std::thread::sleep(Duration::from_millis(1));
        }
        attacker.wait_for("done");
        stop.store(true, Ordering::Relaxed);
        let operations = worker.join().expect("an honest member gets typed errors");
        assert!(operations > 0);
    });
    ask_everything(&mut raw, &name);
    let repairs = raw.info(&name).repairs;
    drop(attacker);
    eventually("the repair", || {
        let info = raw.info(&name);
        (info.repairs > repairs || info.state == "fault").then_some(())
    });
    ask_everything(&mut raw, &name);
    assert!(matches!(raw.ask(&Request::DeleteQueue { name }), Reply::Done));
}

/// Messages of an honest pair on a queue of its own, while `work` goes on. Returns how many came through in order.
fn beside_honest_pair(daemon: &Daemon, work: impl FnOnce()) -> u64 {
    let mut raw = Raw::hello(&daemon.socket, 3);
    raw.create("honest", support::mpmc());
    let stop = AtomicBool::new(false);
    let options = || HandleOptions::with_wait(WaitPolicy::Park);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let client = Client::connect(&daemon.socket).unwrap();
            let mut producer = client.producer_with("honest", options()).unwrap();
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                producer.send(&sent.to_ne_bytes()).unwrap();
                sent += 1;
            }
            // The last word.
            producer.send(b"end").unwrap();
            sent
        });
        let receiver = scope.spawn(|| {
            let client = Client::connect(&daemon.socket).unwrap();
            let mut consumer = client.consumer_with("honest", options()).unwrap();
            let mut buffer = Vec::new();
            let mut received = 0u64;
            loop {
                consumer.receive(&mut buffer).unwrap();
                if buffer == b"end" {
                    return received;
                }
                assert_eq!(buffer, received.to_ne_bytes());
                received += 1;
            }
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        let (sent, received) = (sender.join().unwrap(), receiver.join().unwrap());
        if let Err(panic) = worked {
            std::panic::resume_unwind(panic);
        }
        assert_eq!(sent, received);
        received
    })
}

/// 4 attacks x 6 rounds x 8,000 words.
#[test]
fn the_daemon_and_other_queues_do_not_notice_a_hostile_member() {
    let daemon = Daemon::start();
    let before = daemon.status();
    let received = beside_honest_pair(&daemon, || {
        for seed in 0..ROUNDS {
            attack(&daemon, Kind::Mpmc, "produce", 4 * seed);
            attack(&daemon, Kind::Mpmc, "consume", 4 * seed + 1);
            attack(&daemon, Kind::Spsc, "produce", 4 * seed + 2);
            attack(&daemon, Kind::Spsc, "consume", 4 * seed + 3);
        }
    });
    assert!(received > 0);
    let after = daemon.status();
    assert_eq!(
        (after.broker_pid, after.broker_starts, after.keeper_pid),
        (before.broker_pid, before.broker_starts, before.keeper_pid),
        "{}",
        daemon.log()
    );
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
