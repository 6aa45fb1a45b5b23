//! A member that writes anything into every word it can write, while the daemon does its work on that ring.

use ringmain_client::layout::{State, Word};
use ringmain_client::protocol::{ErrorCode, QueueSpec, Reply, Request, Role};
use ringmain_client::ring::Region;
use ringmain_client::sync::atomic::Ordering;
use ringmain_client::sys::map::Access;

use crate::support::*;

const MUTATIONS: u32 = 120_000;
const BETWEEN_REQUESTS: u32 = 200;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Random bits, small numbers, extremes, and words that look right.
    fn value(&mut self) -> u64 {
        let states = [State::Free, State::Writing, State::Published, State::Held, State::Returned];
        let bits = self.next();
        match self.next() % 6 {
            0 => bits,
            1 => bits % 300,
            2 => u64::MAX - bits % 3,
            3 => 0,
            _ => {
                let [n, owner, state, lap, ..] = bits.to_le_bytes();
                let state = states[usize::from(state) % states.len()];
                Word::new(u64::from(lap % 4), u32::from(n % 20), owner % 8, state).0
            }
        }
    }
}

/// Every region that the member may write.
fn writable(attachment: &Attachment) -> Vec<Region> {
    attachment
        .mappings
        .iter()
        .filter(|mapping| mapping.access() == Access::ReadWrite)
        // SAFETY: page-aligned, mapped for its length; the attachment outlives the regions.
        .map(|mapping| unsafe { Region::new(mapping.base(), mapping.len()) })
        .collect()
}

fn torment(spec: &QueueSpec, roles: &[Role], seed: u64) {
    let daemon = Daemon::start();
    let before = daemon.status();
    let mut raw = Raw::hello(&daemon.socket, 1);
    let mut random = Random(seed);
    raw.create("honest", mpmc());
    let honest = raw.attach("honest", Role::Produce);
    let receiving = raw.attach("honest", Role::Consume);
    let (mut producer, mut consumer) = (honest.producer(), receiving.consumer());
    raw.create("q", spec.clone());
    let mut members: Vec<_> = roles.iter().map(|role| raw.attach("q", *role)).collect();
    let mut regions: Vec<_> = members.iter().flat_map(writable).collect();
    let (mut rounds, mut faults) = (0_u32, 0_u32);
    for mutation in 0..MUTATIONS {
        let index = usize::try_from(random.next()).unwrap() % regions.len();
        let region = &regions[index];
        // Mostly where the headers are.
        let reach =
            if random.next().is_multiple_of(4) { region.len() } else { region.len().min(0x500) };
        let offset = usize::try_from(random.next()).unwrap() % (reach / 8) * 8;
        region.u64_at(offset).store(random.value(), Ordering::Relaxed);
        if !mutation.is_multiple_of(BETWEEN_REQUESTS) {
            continue;
        }
        rounds += 1;
        let request = match rounds % 4 {
            0 => Request::QueueInfo { name: "q".into() },
            1 => Request::PurgeQueue { name: "q".into() },
            2 => Request::ListQueues { after: String::new() },
            _ => Request::attach("q", roles[0]),
        };
        match raw.ask(&request) {
            Reply::Attached(attached) => {
                raw.ask(&Request::Detach { handle: attached.key });
            }
            Reply::Error { code, .. } => {
                assert!(matches!(code, ErrorCode::Busy | ErrorCode::Closed | ErrorCode::Limit));
            }
            _ => {}
        }
        // A member that dies there is repaired, or the ring is closed.
        if rounds % 100 == 50 {
            let child = Actor::start(&daemon.socket, &["join", "q"]);
            child.says();
            child.kill();
        }
        let info = raw.info("q");
        if info.state != "open" || info.handles.len() > 200 {
            assert!(info.state == "open" || info.state == "fault", "{}", info.state);
            faults += 1;
            regions.clear();
            members.clear();
            assert_eq!(raw.ask(&Request::DeleteQueue { name: "q".into() }), Reply::Done);
            raw.create("q", spec.clone());
            members = roles.iter().map(|role| raw.attach("q", *role)).collect();
            regions = members.iter().flat_map(writable).collect();
        }
        producer.try_send(0, &[], &mutation.to_le_bytes()).unwrap();
        let taken = consumer.try_take().unwrap();
        let mut bytes = [0; 4];
        consumer.read(&taken, 0, &mut bytes);
        assert_eq!(u32::from_le_bytes(bytes), mutation);
        consumer.release(taken);
    }
    println!("{rounds} rounds, {faults} faults");
    assert_eq!(raw.status().broker_pid, before.broker_pid, "{}", daemon.log());
    // The next broker gets along with it too.
    daemon.kill_broker();
    let mut raw = Raw::hello(&daemon.socket, 2);
    raw.info("q");
    assert_eq!(raw.info("honest").state, "open");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn an_mpmc_member_that_writes_anything() {
    torment(&mpmc(), &[Role::Produce, Role::Consume], 1);
}

#[test]
fn an_spsc_producer_that_writes_anything() {
    torment(&spsc(), &[Role::Produce], 2);
}

#[test]
fn an_spsc_consumer_that_writes_anything() {
    torment(&spsc(), &[Role::Consume], 3);
}
