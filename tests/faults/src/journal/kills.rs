//! A killed process leaves something in a cache, the next one reads it, and then the power goes.

use ringmain::disk::simulated::{CrashOptions, Simulation};

use super::driver::Driver;
use super::model::Model;

/// How often that came to pass.
pub fn run(seed: u64, times: u64) -> Result<u64, String> {
    let mut landed = 0;
    for seed in seed..seed + times {
        landed += u64::from(run_one(seed).map_err(|what| format!("RINGMAIN_SEED={seed}: {what}"))?);
    }
    Ok(landed)
}

/// Whether the killed process's last batch was there as a whole.
fn run_one(seed: u64) -> Result<bool, String> {
    let simulation = Simulation::new();
    simulation.hold();
    let mut driver =
        Driver::open(&simulation, Model::default(), seed).map_err(|error| error.to_string())?;
    driver.settle();
    driver.publish_small();
    driver.submit();
    let (model, confirmed) = (driver.model.clone(), driver.journal.durable());
    simulation.kill(seed);
    let driver =
        Driver::open(&simulation, model.clone(), seed).map_err(|error| error.to_string())?;
    // From here on its messages are given out.
    let durable = driver.journal.durable();
    let options = CrashOptions { limit: 16, seed, garbage: true };
    if durable > confirmed {
        for state in simulation.crash_states(simulation.point(), options) {
            let mut again = Driver::open(&state, driver.model.clone(), seed)
                .map_err(|error| error.to_string())?;
            again.check(&driver.model, (durable, durable))?;
        }
    }
    Ok(durable > confirmed)
}
