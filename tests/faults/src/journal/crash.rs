//! Power cuts: every disk that one could leave is opened and checked, and goes on to the next power cut.

use ringmain::disk::simulated::{CrashOptions, CrashStates, Simulation};
use ringmain::journal::Ready;

use super::driver::{Driver, PATIENCE, config};
use super::model::Model;
use crate::random::Random;

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Stops when so many states were opened.
    pub states: usize,
    /// Steps of a process before it is killed or stopped.
    pub steps: usize,
    /// One of so many points is looked at.
    pub every: usize,
    /// Up to this many states of a point, all are visited.
    pub exhaustive: usize,
    /// Of more, so many are drawn.
    pub drawn: usize,
    /// Each process has segments of another length, and the disk is so small that it is full most of the time.
    pub resized: bool,
}

impl Size {
    /// By `RINGMAIN_CRASH`: short unless it says long.
    pub fn from_environment() -> Self {
        let long = std::env::var("RINGMAIN_CRASH").is_ok_and(|size| size == "long");
        if long { Self { states: 10_000_000, ..Self::SHORT } } else { Self::SHORT }
    }

    /// For every change.
    pub const SHORT: Self = Self {
        states: 100_000,
        steps: 260,
        every: 10,
        exhaustive: 4_096,
        drawn: 48,
        resized: false,
    };
    /// For planted bugs.
    pub const TINY: Self =
        Self { states: 30_000, every: 2, exhaustive: 64, drawn: 24, ..Self::SHORT };

    /// Bytes of the disk.
    fn capacity(&self) -> Option<u64> {
        self.resized.then_some(12 * config().segment_bytes)
    }

    /// The next process: its seed and the length of its segments. Four of the longest fill the disk.
    fn process(&self, random: &mut Random) -> (u64, u64) {
        let (seed, shortest) = (random.any(), config().segment_bytes);
        if !self.resized {
            return (seed, shortest);
        }
        // Even: with fewer files than a daemon holds ready a start on a full disk is not certain to find one.
        (seed & !1, shortest * [2, 3, 4, 6][random.below(4)] / 2)
    }
}

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Count {
    pub states: usize,
    pub points: usize,
    pub exhaustive_points: usize,
    pub lives: usize,
    /// States that were opened, written to, cut off and opened again.
    pub nested: usize,
    /// Segments that were cleaned.
    pub cleaned: u64,
    /// Processes that ended on a full disk.
    pub full: usize,
}

/// Runs until the size is reached; an error says how to repeat it.
pub fn run(seed: u64, size: Size) -> Result<Count, String> {
    let mut count = Count::default();
    let mut number = 0;
    while count.states < size.states {
        let seed = seed.wrapping_add(number);
        run_one(seed, size, &mut count).map_err(|what| format!("RINGMAIN_SEED={seed}: {what}"))?;
        number += 1;
    }
    Ok(count)
}

/// So many disks with processes whose segments have different lengths, without a look at what power cuts leave between their ends.
pub fn resized(seed: u64, disks: u64) -> Result<Count, String> {
    let mut count = Count::default();
    for seed in (0..disks).map(|number| seed.wrapping_add(number)) {
        let size = Size { resized: true, steps: 600, every: usize::MAX, ..Size::SHORT };
        run_one(seed, size, &mut count).map_err(|what| format!("RINGMAIN_SEED={seed}: {what}"))?;
    }
    Ok(count)
}

/// One disk and the processes that use it one after the other.
fn run_one(seed: u64, size: Size, count: &mut Count) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut simulation = Simulation::new();
    simulation.hold();
    simulation.set_capacity(size.capacity());
    let mut model = Model::default();
    for life in 0..4 {
        let start = simulation.point();
        let (seed, bytes) = size.process(&mut random);
        let mut driver = Driver::open_with(&simulation, model, seed, bytes)
            .map_err(|error| format!("life {life}: {error}"))?;
        count.lives += 1;
        for _ in 0..random.below(size.steps) + size.steps / 2 {
            driver.step();
        }
        if driver.failed {
            return Err("a healthy disk failed".to_owned());
        }
        if let Some(complaint) = driver.complaint.take() {
            return Err(complaint);
        }
        count.full += usize::from(matches!(driver.journal.is_ready(), Ready::NoSpace { .. }));
        count.cleaned += driver.journal.statistics().cleaned;
        match random.below(4) {
            0 => driver.settle(),
            1 => {
                driver.settle();
                let (expected, durable) = (driver.model.clone(), driver.journal.durable());
                driver.check(&expected, (durable, durable))?;
                check_points(&driver, start, size, &mut random, count)?;
                model = driver.model;
                simulation.flow();
                let (_, closed) = driver.journal.close(&driver.owner, PATIENCE);
                closed.map_err(|failure| failure.to_string())?;
                simulation.hold();
                continue;
            }
            _ => {}
        }
        check_points(&driver, start, size, &mut random, count)?;
        model = driver.model.clone();
        if random.below(2) == 0 {
            simulation.kill(random.any());
        } else {
            let options = CrashOptions { limit: 8, seed: random.any(), garbage: true };
            let mut states = simulation.crash_states(simulation.point(), options);
            let next = states
                .nth(random.below(8))
                .or_else(|| simulation.crash_states(simulation.point(), options).next());
            simulation = next.ok_or("there is always a state")?;
            simulation.hold();
            simulation.set_capacity(size.capacity());
        }
    }
    if size.resized {
        let (seed, bytes) = size.process(&mut random);
        let last = Driver::open_with(&simulation, model, seed, bytes);
        last.map_err(|error| error.to_string())?.drain()?;
    }
    Ok(())
}

fn check_points(
    driver: &Driver,
    start: usize,
    size: Size,
    random: &mut Random,
    count: &mut Count,
) -> Result<(), String> {
    for point in start..=driver.simulation.point() {
        if random.below(size.every) != 0 {
            continue;
        }
        count.points += 1;
        for garbage in [false, true] {
            let (states, exhaustive) = states_at(&driver.simulation, point, garbage, random, size);
            count.exhaustive_points += usize::from(exhaustive);
            for (number, state) in states.enumerate() {
                count.states += 1;
                let nested = random.below(16) == 0;
                count.nested += usize::from(nested);
                state.set_capacity(size.capacity());
                check_state(driver, &state, point, (nested, size), random)
                    .map_err(|what| format!("point {point}, state {number}: {what}"))?;
            }
            if exhaustive && !garbage {
                // Garbage adds nothing where nothing is uncertain.
                continue;
            }
        }
        if count.states >= size.states {
            break;
        }
    }
    Ok(())
}

fn states_at(
    simulation: &Simulation,
    point: usize,
    garbage: bool,
    random: &mut Random,
    size: Size,
) -> (CrashStates, bool) {
    let seed = random.any();
    let all = CrashOptions { limit: size.exhaustive, seed, garbage };
    let states = simulation.crash_states(point, all);
    if states.is_exhaustive() {
        return (states, true);
    }
    let some = CrashOptions { limit: size.drawn, seed, garbage };
    (simulation.crash_states(point, some), false)
}

/// Opens a disk, checks it, and perhaps goes on with it.
fn check_state(
    driver: &Driver,
    state: &Simulation,
    point: usize,
    (nested, size): (bool, Size),
    random: &mut Random,
) -> Result<(), String> {
    let model = driver.model.clone();
    let (seed, bytes) = size.process(random);
    let found = Driver::open_with(state, model, seed, bytes);
    let mut found = found.map_err(|error| error.to_string())?;
    found.check(&driver.model, driver.promised(point))?;
    if nested { go_on(found, state, random) } else { Ok(()) }
}

/// The recovery itself is cut off, or what comes after it.
fn go_on(mut driver: Driver, state: &Simulation, random: &mut Random) -> Result<(), String> {
    state.hold();
    for _ in 0..random.below(40) {
        driver.step();
    }
    let point = random.below(state.point() + 1);
    let options = CrashOptions { limit: 4, seed: random.any(), garbage: true };
    for after in state.crash_states(point, options) {
        let mut again = Driver::open(&after, driver.model.clone(), random.any())
            .map_err(|error| format!("after another power cut: {error}"))?;
        again
            .check(&driver.model, driver.promised(point))
            .map_err(|what| format!("after another power cut: {what}"))?;
    }
    Ok(())
}
