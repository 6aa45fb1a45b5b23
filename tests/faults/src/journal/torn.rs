//! A segment begins and its checkpoint is torn; the next process is cut off as well, while it begins one in its turn. Both checkpoints say
//! nearly the same, perhaps in the same place. Nothing of the first process may come back once the second one has opened the journal.

use ringmain::disk::simulated::{CrashOptions, CrashStates, Simulation, Site};

use super::driver::{Driver, config};
use super::model::Model;
use crate::random::Random;

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Count {
    /// States after the second power cut.
    pub states: usize,
    /// The only file was the one with the torn beginning.
    pub voided: usize,
}

/// With a journal that has other files and with one that has none.
pub fn run(seed: u64) -> Result<Count, String> {
    let mut count = Count::default();
    for has_others in [true, false] {
        run_one(seed, has_others, &mut count)
            .map_err(|what| format!("RINGMAIN_SEED={seed}, other files: {has_others}: {what}"))?;
    }
    Ok(count)
}

fn open(simulation: &Simulation, model: Model, random: &mut Random) -> Result<Driver, String> {
    Driver::open(simulation, model, random.any()).map_err(|error| error.to_string())
}

/// A process that has begun a segment, with the batch behind the checkpoint durable and the checkpoint on its way.
fn begun(random: &mut Random, capacity: Option<u64>) -> Result<Driver, String> {
    let simulation = Simulation::new();
    simulation.hold();
    simulation.set_capacity(capacity);
    let mut driver = open(&simulation, Model::default(), random)?;
    driver.settle();
    // Enough for a checkpoint of some sectors.
    for _ in 0..4 {
        for _ in 0..80 {
            driver.publish_small();
        }
        driver.settle();
    }
    let model = driver.model;
    simulation.kill(random.any());
    let mut first = open(&simulation, model, random)?;
    first.submit();
    // A batch behind the checkpoint, which gets there as a whole.
    for _ in 0..200 {
        first.publish_small();
    }
    first.submit();
    let writes = simulation.in_flight().into_iter().filter(|one| one.site == Site::BeginWrite);
    let [_, behind] = &writes.collect::<Vec<_>>()[..] else {
        return Err("a checkpoint and a batch were to be in flight".to_owned());
    };
    simulation.release(behind.ticket);
    first.reap();
    Ok(first)
}

/// Room for two segments: the one that the first process has left, and another one.
fn two_files() -> u64 {
    2 * config().segment_bytes
}

/// What the power cut leaves of it.
fn states(first: &Driver, random: &mut Random) -> CrashStates {
    let all = CrashOptions { limit: 1 << 12, seed: random.any(), garbage: false };
    first.simulation.crash_states(first.simulation.point(), all)
}

/// Whether it overwrites a torn header: nothing is appended as long as it does.
fn is_voiding(driver: &Driver) -> bool {
    let mut begun = driver.simulation.in_flight().into_iter();
    let writes = begun.any(|one| one.site == Site::BeginWrite && one.offset == 0);
    writes && driver.journal.last_lsn() == driver.journal.durable()
}

/// Disks on which a torn header has to be overwritten first, and what may be on them.
pub(super) fn to_be_voided(seed: u64) -> Result<(Vec<Simulation>, Model), String> {
    let mut random = Random::new(seed);
    let first = begun(&mut random, Some(two_files()))?;
    let mut found = Vec::new();
    for state in states(&first, &mut random) {
        let tried = state.copy();
        tried.hold();
        tried.set_capacity(Some(two_files()));
        let mut second = open(&tried, first.model.clone(), &mut random)?;
        second.submit();
        if is_voiding(&second) {
            found.push(state);
        }
    }
    Ok((found, first.model))
}

fn run_one(seed: u64, has_others: bool, count: &mut Count) -> Result<(), String> {
    let mut random = Random::new(seed);
    let capacity = (!has_others).then_some(two_files());
    let first = begun(&mut random, capacity)?;
    for state in states(&first, &mut random) {
        state.hold();
        state.set_capacity(capacity);
        let mut second = open(&state, first.model.clone(), &mut random)?;
        let mut voids = false;
        for _ in 0..random.below(6) {
            second.submit();
            voids |= is_voiding(&second);
            if random.below(2) == 0 {
                second.publish_small();
            }
            let in_flight = state.in_flight();
            if random.below(4) == 0 && !in_flight.is_empty() {
                state.release(in_flight[random.below(in_flight.len())].ticket);
                second.reap();
            }
        }
        count.voided += usize::from(voids);
        let point = random.below(state.point() + 1);
        let some = CrashOptions { limit: 24, seed: random.any(), garbage: random.below(2) == 0 };
        for after in state.crash_states(point, some) {
            count.states += 1;
            let mut third = open(&after, second.model.clone(), &mut random)?;
            third
                .check(&second.model, second.promised(point))
                .map_err(|what| format!("state {}: {what}", count.states))?;
        }
    }
    Ok(())
}
