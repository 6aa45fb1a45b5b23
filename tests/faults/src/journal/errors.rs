//! One error of every kind at every call, and what must follow from it.

use ringmain::disk::simulated::{Fault, Simulation, Site};
use ringmain::journal::{AppendError, OpenError, Ready, RecordRef};

use super::driver::{Driver, PATIENCE};
use super::model::Model;

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
fn scenario(simulation: &Simulation, seed: u64) -> Result<bool, String> {
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
    if !scenario(&plain, seed)? {
        return Err("a healthy disk fails".to_owned());
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
                scenario(&simulation, seed)
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
