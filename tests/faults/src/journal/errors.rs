//! One error of every kind at every call, and what must follow from it.

use ringmain::disk::simulated::{Fault, Simulation, Site};
use ringmain::journal::{AppendError, Config, Fetch, Journal, OpenError, Ready, RecordRef};

use super::driver::{Driver, PATIENCE};
use super::model::{Model, body};
use super::owner::Owner;
use super::torn;

/// Sites that an open journal and its opening use.
pub const SITES: [Site; 10] = [
    Site::List,
    Site::Open,
    Site::Length,
    Site::Read,
    Site::Sync,
    Site::SyncDirectory,
    Site::BeginWrite,
    Site::BeginRead,
    Site::BeginCreate,
    Site::BeginRemove,
];

/// Two processes: one fills some segments and is killed, the next one opens the journal, reads it and stops.
/// `Ok(false)`: an error was told in the right way, and the second process was not reached.
fn scenario(simulation: &Simulation, seed: u64, cleaned: &mut u64) -> Result<bool, String> {
    let mut model = Model::default();
    let mut least = 0;
    for life in 0..2 {
        simulation.hold();
        let mut driver = match Driver::open(simulation, model.clone(), seed + life) {
            Ok(driver) => driver,
            Err(OpenError::Io { .. }) => return recovers(simulation, &model, least),
            // Of a short read of nothing.
            Err(other) => return Err(format!("opening: {other}")),
        };
        driver.settle();
        for _ in 0..300 {
            driver.step();
        }
        driver.settle();
        for _ in 0..90 {
            // A segment file that could not be made is asked for again.
            driver.pass_second();
            driver.settle();
        }
        read_all(&mut driver)?;
        if let Some(complaint) = driver.complaint.take() {
            return Err(complaint);
        }
        least = driver.journal.durable();
        *cleaned += driver.journal.statistics().cleaned;
        model = driver.model.clone();
        if driver.failed {
            stays_failed(&mut driver, least)?;
            drop(driver);
            return recovers(simulation, &model, least);
        }
        if driver.journal.durable() != driver.journal.last_lsn() {
            return Err("the journal neither failed nor went on".to_owned());
        }
        simulation.flow();
        if life == 1 {
            // Whether it can be closed is the disk's affair.
            drop(driver.journal.close(&driver.owner, PATIENCE));
        }
    }
    recovers(simulation, &model, least)?;
    Ok(true)
}

/// Every message is there or reports its damage.
fn read_all(driver: &mut Driver) -> Result<(), String> {
    let durable = driver.journal.durable();
    let Ok(state) = driver.model.state_at(durable) else { return Ok(()) };
    for ((queue, sequence), length) in state.lengths {
        // The owner does not ask again for what it has acknowledged, durably or not.
        if !driver.owner.state()[&queue].unacknowledged.contains(&sequence) {
            continue;
        }
        match driver.fetch(queue, sequence) {
            Ok(Some(body)) if body.len() == length => {}
            Err(what) if what.starts_with("journal corrupt") => {}
            other => return Err(format!("{queue}/{sequence}: {other:?}")),
        }
    }
    Ok(())
}

/// Failure is final.
fn stays_failed(driver: &mut Driver, durable: u64) -> Result<(), String> {
    let Ready::Failed(failure) = driver.journal.is_ready() else {
        return Err("a failed journal says that it is well".to_owned());
    };
    if failure.lsn <= durable {
        return Err(format!("confirmed up to {durable}, failed at {}", failure.lsn));
    }
    let record = RecordRef { kind: 1, flags: 0, queue: 1, sequence: 1, parts: &[] };
    match driver.journal.append(record) {
        Err(AppendError::Failed { .. }) => {}
        other => return Err(format!("append to a failed journal: {other:?}")),
    }
    driver.settle();
    if driver.journal.durable() != durable {
        return Err("a failed journal confirms".to_owned());
    }
    Ok(())
}

/// The next process finds everything that was confirmed.
fn recovers(simulation: &Simulation, model: &Model, least: u64) -> Result<bool, String> {
    simulation.kill(1);
    // Without the faults that are still to come.
    let simulation = &simulation.copy();
    let text = |error: OpenError| format!("without further errors: {error}");
    let mut driver = Driver::open(simulation, model.clone(), 1).map_err(text)?;
    driver.check(model, (least, u64::MAX))?;
    Ok(false)
}

/// All faults at all calls. How many there were.
pub fn everywhere(seed: u64) -> Result<u64, String> {
    let plain = Simulation::new();
    let mut cleaned = 0;
    if !scenario(&plain, seed, &mut cleaned)? {
        return Err("a healthy disk fails".to_owned());
    }
    if cleaned == 0 {
        return Err("nothing was cleaned".to_owned());
    }
    let mut faults = 0;
    for site in SITES {
        let calls = plain.calls(site);
        if calls == 0 {
            return Err(format!("{site:?} is never called"));
        }
        for nth in 1..=calls {
            for fault in Fault::ALL {
                let simulation = Simulation::new();
                simulation.fail(site, nth, fault);
                scenario(&simulation, seed, &mut cleaned)
                    .map_err(|what| format!("{site:?} call {nth}, {fault:?}: {what}"))?;
                if simulation.fired().is_empty() {
                    return Err(format!("{site:?} call {nth}, {fault:?}: did not come to pass"));
                }
                faults += 1;
            }
        }
    }
    Ok(faults)
}

/// The write that makes a torn beginning void fails: so does the journal, and the next one does it again.
pub fn voiding() -> Result<u64, String> {
    let (disks, model) = torn::to_be_voided(1)?;
    let mut faults = 0;
    for disk in &disks {
        for fault in Fault::ALL {
            let simulation = disk.copy();
            simulation.hold();
            simulation.fail(Site::BeginWrite, 1, fault);
            let mut driver =
                Driver::open(&simulation, model.clone(), 1).map_err(|error| error.to_string())?;
            let (least, expected) = (driver.journal.durable(), driver.model.clone());
            // There is no other file.
            simulation.set_capacity(Some(0));
            driver.settle();
            if !driver.failed || simulation.fired().is_empty() {
                return Err(format!("{fault:?}: nothing failed"));
            }
            stays_failed(&mut driver, least)?;
            drop(driver);
            recovers(&simulation, &expected, least)?;
            faults += 1;
        }
    }
    Ok(faults)
}

const BACKLOG: u64 = 1_200;

fn backlog_body(sequence: u64) -> Vec<u8> {
    body(1, sequence, 700 + usize::try_from(sequence % 300).unwrap_or(0))
}

fn open_backlog(
    simulation: &Simulation,
) -> Result<(Journal<impl ringmain::disk::Disk>, Owner), String> {
    let config = Config {
        segment_bytes: 256 << 10,
        batch_bytes: 24 << 10,
        cache_bytes: 1 << 20,
        journal_id: 9,
        ..Config::default()
    };
    let mut owner = Owner::default();
    let opened = Journal::open(simulation.disk(), config, &mut owner);
    opened.map(|(journal, _)| (journal, owner)).map_err(|error| error.to_string())
}

/// Some segments of messages of one queue.
fn backlog() -> Result<Simulation, String> {
    let simulation = Simulation::new();
    let (mut journal, mut owner) = open_backlog(&simulation)?;
    for sequence in 1..=BACKLOG {
        while journal.is_ready() != Ready::Ready {
            journal.submit(&owner, std::time::Instant::now());
            journal.reap();
        }
        let published = owner.publish(&mut journal, 1, &backlog_body(sequence));
        published.map_err(|error| error.to_string())?;
    }
    let (_, closed) = journal.close(&owner, PATIENCE);
    closed.map_err(|failure| failure.to_string())?;
    Ok(simulation)
}

/// Reads everything in order. Messages that could not be read, and reads that were begun ahead.
fn read_through(simulation: &Simulation) -> Result<(u64, u64), String> {
    let (mut journal, _) = open_backlog(simulation)?;
    let mut failed = 0;
    for sequence in 1..=BACKLOG {
        let mut patience = 100;
        loop {
            match journal.message(1, sequence) {
                Fetch::Ready(found) if found.sequence != sequence => {
                    return Err(format!("{} instead of {sequence}", found.sequence));
                }
                Fetch::Ready(found) if found.body == backlog_body(sequence) => break,
                Fetch::Failed(_) => {
                    failed += 1;
                    break;
                }
                Fetch::Pending if patience > 0 => {
                    patience -= 1;
                    journal.reap();
                }
                other => return Err(format!("{sequence}: {other:?}")),
            }
        }
    }
    Ok((failed, journal.statistics().reads_ahead))
}

/// Every read of a backlog fails once, those ahead as well: messages are right or answered with the damage, and nothing is missing when
/// the journal is opened again.
pub fn far_reads() -> Result<u64, String> {
    let plain = backlog()?;
    let tried = plain.copy();
    let (failed, ahead) = read_through(&tried)?;
    if failed > 0 || ahead == 0 {
        return Err(format!("{failed} messages failed, {ahead} reads were ahead"));
    }
    let mut faults = 0;
    let mut damaged = 0;
    for nth in 1..=tried.calls(Site::BeginRead) {
        for fault in Fault::ALL {
            let simulation = plain.copy();
            simulation.fail(Site::BeginRead, nth, fault);
            let told = |what| format!("read {nth}, {fault:?}: {what}");
            damaged += read_through(&simulation).map_err(told)?.0;
            if simulation.fired().is_empty() {
                return Err(told("did not come to pass".to_owned()));
            }
            let (failed, _) = read_through(&simulation).map_err(told)?;
            if failed > 0 {
                return Err(told(format!("{failed} messages are gone")));
            }
            faults += 1;
        }
    }
    if damaged == 0 { Err("no error was told".to_owned()) } else { Ok(faults) }
}
