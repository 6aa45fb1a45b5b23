//! Kill loops: a real daemon with real publishers and consumers on real records; broker, keeper and clients are killed at
//! random moments.
//!
//! What is checked at the end: every confirmed record was consumed, unaltered, under the sequence of its receipt; the records of one
//! publisher in its order and without a gap; no sequence stands for two records, none is missing; what came twice was
//! marked; what a consumer that ended well had printed never came again; the journal verifies.

mod check;
mod processes;
mod records;

use std::time::{Duration, Instant};

use crate::random::Random;
use crate::runner::{Runner, Size, Tally};
use check::Life;
use processes::{Binary, Client, Daemon, End};
use records::Records;

/// Publishers, and as many consumers.
const MEMBERS: usize = 4;

/// Longest time that anything may take on a busy machine before it counts as hung.
const LIMIT: Duration = Duration::from_secs(60);

/// Queue of the case.
const QUEUE: &str = "jobs";
/// Takes what expires.
const LETTERS: &str = "failed";
/// So short that what lies there while a daemon starts is over.
const TTL: &str = "30ms";
/// Groups, if there are several.
const GROUPS: [&str; 2] = ["default", "audit"];

#[derive(Debug, Clone, Copy)]
struct Plan {
    durable: bool,
    /// Publishers have names: whoever replaces a killed one begins with its first record again.
    named: bool,
    /// Consumers are in two groups by turns: each group gets everything.
    grouped: bool,
    /// Messages expire.
    expires: bool,
    kills: u32,
    seed: u64,
}

/// Whom a signal hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Publisher,
    Consumer,
    /// SIGTERM: it ends well.
    ConsumerAsked,
    Broker,
    Keeper,
    KeeperAndBroker,
}

/// Runs the suite; the exit code.
pub fn run(arguments: impl Iterator<Item = String>) -> i32 {
    let size = Size::from_environment("RINGMAIN_KILL_LOOPS");
    let seed = Random::seed_from_environment();
    println!("RINGMAIN_SEED={seed}");
    let binary = match Binary::build() {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("{error}");
            return 1;
        }
    };
    let records = Records::load();
    let mut runner = Runner::new("kills", arguments);
    let plain =
        Plan { durable: true, named: false, grouped: false, expires: false, kills: 0, seed };
    let cases = [
        ("durable", plain, 100, 2000),
        ("memory", Plan { durable: false, ..plain }, 40, 800),
        ("named", Plan { named: true, ..plain }, 60, 1000),
        ("named-memory", Plan { durable: false, named: true, ..plain }, 30, 400),
        ("groups", Plan { grouped: true, ..plain }, 30, 600),
        ("ttl", Plan { expires: true, ..plain }, 30, 600),
    ];
    for (name, plan, short, long) in cases {
        let plan = Plan { kills: size.choose(short, long), ..plan };
        runner.case(&format!("kill-loops::{name}"), |tally| {
            let result = World::start(&binary, &records, plan).and_then(|mut world| {
                let result = world.run(tally);
                result.map_err(|error| format!("{error}\n{}", world.daemon.log_end()))
            });
            if let Err(error) = result {
                tally.check(|| format!("{plan:?}"), Err(error));
            }
        });
    }
    runner.finish()
}

/// Everybody, and what they left.
struct World<'a> {
    binary: &'a Binary,
    records: &'a Records,
    plan: Plan,
    random: Random,
    // In front of the daemon, whose folder has their files: dropped first.
    publishers: Vec<Client>,
    consumers: Vec<Client>,
    daemon: Daemon,
    lives: Vec<Life>,
    /// Counts starts and ends, so that it is known what came before what.
    moment: u64,
    /// Counts the deaths of the keeper.
    era: u64,
}

impl<'a> World<'a> {
    fn start(binary: &'a Binary, records: &'a Records, plan: Plan) -> Result<Self, String> {
        let daemon = Daemon::start(binary)?;
        let plane: &[&str] = if plan.durable { &["--durable"] } else { &["--plane", "brokered"] };
        let mut create = [&["queue", "create", QUEUE, "--lease", "20s"], plane].concat();
        if plan.expires {
            daemon.run(&[&["queue", "create", LETTERS], plane].concat())?;
            create.extend(["--ttl", TTL, "--dead-letter", LETTERS]);
        }
        daemon.run(&create)?;
        if plan.grouped {
            daemon.run(&["group", "create", QUEUE, GROUPS[1], "--from", "first"])?;
        }
        let mut world = Self {
            binary,
            records,
            plan,
            random: Random::new(plan.seed),
            publishers: Vec::new(),
            consumers: Vec::new(),
            daemon,
            lives: Vec::new(),
            moment: 0,
            era: 0,
        };
        for index in 0..MEMBERS {
            let publisher = world.publisher(index)?;
            world.publishers.push(publisher);
            let consumer = world.consumer(index)?;
            world.consumers.push(consumer);
        }
        Ok(world)
    }

    /// The one with this index, for the first time or instead of one that is gone.
    fn publisher(&mut self, index: usize) -> Result<Client, String> {
        let window = self.random.pick(&["1", "16", "256", "4096"]);
        let life = self.life(true);
        let name = format!("publisher-{index}");
        let mut arguments = vec!["publish", QUEUE, "--receipts", "--window", window];
        if self.plan.named {
            arguments.extend(["--producer", &name]);
            if let Some(before) = self.publishers.get(index) {
                self.lives[life].author = self.lives[before.life].author;
            }
        }
        let author = self.lives[life].author;
        Client::start(&self.daemon, life, &arguments, Some((self.records, author)))
    }

    fn groups(&self) -> usize {
        if self.plan.grouped { GROUPS.len() } else { 1 }
    }

    fn consumer(&mut self, index: usize) -> Result<Client, String> {
        let credit = self.random.pick(&["1", "8", "64", "512"]);
        let life = self.life(false);
        self.lives[life].group = index % self.groups();
        let group = GROUPS[self.lives[life].group];
        let arguments = ["consume", QUEUE, "--json", "--credit", credit, "--group", group];
        Client::start(&self.daemon, life, &arguments, None)
    }

    fn life(&mut self, publishes: bool) -> usize {
        self.moment += 1;
        let number = self.lives.len();
        self.lives.push(Life {
            publishes,
            author: number,
            group: 0,
            era: self.era,
            start: self.moment,
            end: None,
            well: false,
        });
        number
    }

    fn ended(&mut self, life: usize, well: bool) {
        self.moment += 1;
        self.lives[life].end = Some(self.moment);
        self.lives[life].well = well;
    }

    fn run(&mut self, tally: &mut Tally) -> Result<(), String> {
        for _ in 0..self.plan.kills {
            std::thread::sleep(Duration::from_micros(self.random.any() % 120_000));
            let victim = self.victim();
            self.kill(victim).map_err(|error| format!("{victim:?}: {error}"))?;
            tally.units += 1;
        }
        self.finish()?;
        let (letters, expired) = match self.plan.expires {
            true => (
                self.daemon.run(&["consume", LETTERS, "--json", "--drain"])?,
                self.daemon.number(QUEUE, "expired")?,
            ),
            false => (String::new(), 0),
        };
        let next = self.daemon.number(QUEUE, "next_sequence")?;
        self.daemon.stop()?;
        if self.plan.durable {
            self.daemon.run_offline(&["journal", "verify"])?;
        }
        for group in 0..self.groups() {
            let findings =
                check::check(&self.daemon.folder, &self.lives, self.records, group, &letters);
            check::verdict(findings, next, expired)?;
        }
        self.must(!self.plan.expires || expired > 0, || "nothing has expired".to_owned())
    }

    fn victim(&mut self) -> Victim {
        let members = [
            Victim::Publisher,
            Victim::Publisher,
            Victim::Consumer,
            Victim::Consumer,
            Victim::ConsumerAsked,
            Victim::Broker,
            Victim::Broker,
        ];
        if self.plan.durable && self.random.below(5) == 0 {
            return self.random.pick(&[Victim::Keeper, Victim::KeeperAndBroker]);
        }
        self.random.pick(&members)
    }

    fn kill(&mut self, victim: Victim) -> Result<(), String> {
        match victim {
            Victim::Publisher => {
                let index = self.random.below(MEMBERS);
                let end = self.publishers[index].kill(libc::SIGKILL)?;
                let known = end == End::Signal(libc::SIGKILL) || self.publishers[index].stillborn();
                self.must(known, || format!("it ended: {end:?}"))?;
                self.ended(self.publishers[index].life, false);
                self.publishers[index] = self.publisher(index)?;
            }
            Victim::Consumer | Victim::ConsumerAsked => {
                let asked = victim == Victim::ConsumerAsked;
                let signal = if asked { libc::SIGTERM } else { libc::SIGKILL };
                let index = self.random.below(MEMBERS);
                let end = self.consumers[index].kill(signal)?;
                // One that has just started does not listen to SIGTERM yet; then it has printed nothing.
                let well = asked && end == End::Code(0);
                let said = self.consumers[index].complaint();
                let known = well || end == End::Signal(signal) || self.consumers[index].stillborn();
                self.must(known, || format!("it ended: {end:?} {said}"))?;
                self.ended(self.consumers[index].life, well);
                self.consumers[index] = self.consumer(index)?;
            }
            Victim::Broker => {
                let broker = self.daemon.broker()?;
                processes::send(broker, libc::SIGKILL);
                // Sometimes the next one dies as well, while it takes over.
                if self.random.below(4) == 0 {
                    std::thread::sleep(Duration::from_micros(self.random.any() % 20_000));
                    if let Ok(next) = self.daemon.broker() {
                        processes::send(next, libc::SIGKILL);
                    }
                }
                self.daemon.wait_until_answers()?;
            }
            Victim::Keeper | Victim::KeeperAndBroker => {
                self.daemon.kill_keeper(victim == Victim::KeeperAndBroker)?;
                self.daemon.restart(self.binary)?;
                self.everybody_ends()?;
                self.era += 1;
                for index in 0..MEMBERS {
                    self.publishers[index] = self.publisher(index)?;
                    self.consumers[index] = self.consumer(index)?;
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::unused_self)] // reads like the other steps
    fn must(&self, holds: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
        if holds { Ok(()) } else { Err(complaint()) }
    }

    /// Another daemon answers, which does not know them: everybody says so and ends; nobody hangs.
    fn everybody_ends(&mut self) -> Result<(), String> {
        let mut ended = Vec::new();
        for client in self.publishers.iter_mut().chain(&mut self.consumers) {
            client.close_input();
            let end = client.wait(LIMIT)?;
            let said = client.complaint();
            let known = matches!(end, End::Code(0 | 65 | 69 | 74 | 75)) && !said.contains("panic");
            if !known {
                return Err(format!("a client without its daemon ended with {end:?}: {said}"));
            }
            ended.push(client.life);
        }
        ended.into_iter().for_each(|life| self.ended(life, false));
        Ok(())
    }

    /// Publishers come to their end, consumers take all that is left.
    fn finish(&mut self) -> Result<(), String> {
        self.publishers.iter_mut().for_each(Client::close_input);
        for index in 0..MEMBERS {
            let end = self.publishers[index].wait(LIMIT)?;
            let said = self.publishers[index].complaint();
            let well = end == End::Code(0);
            let stillborn = self.publishers[index].stillborn();
            self.must(well || stillborn, || format!("a publisher ended with {end:?}: {said}"))?;
            self.ended(self.publishers[index].life, well);
            if self.consumers[index].stillborn() {
                self.ended(self.consumers[index].life, false);
                self.consumers[index] = self.consumer(index)?;
            }
        }
        let start = Instant::now();
        while self.daemon.number(QUEUE, "messages")? > 0 {
            if start.elapsed() > LIMIT {
                return Err(format!(
                    "messages are left: {}",
                    self.daemon.run(&["queue", "info", QUEUE, "--json"])?
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        for index in 0..MEMBERS {
            let end = self.consumers[index].kill(libc::SIGTERM)?;
            let said = self.consumers[index].complaint();
            let well = end == End::Code(0);
            self.must(well || end == End::Signal(libc::SIGTERM), || {
                format!("a consumer ended with {end:?}: {said}")
            })?;
            self.ended(self.consumers[index].life, well);
        }
        Ok(())
    }
}
