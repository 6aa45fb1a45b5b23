//! Golden file: the bytes of a small journal as version 1 has them. A test that fails here means a new version, not a new golden
//! file. `RINGMAIN_GOLDEN=write` writes a missing file.

use std::fmt::Write;
use std::path::PathBuf;

use ringmain::disk::simulated::Simulation;
use ringmain::journal::format::VERSION;
use ringmain_faults::journal::driver::Driver;
use ringmain_faults::journal::model::Model;

/// Two incarnations, of which the second one seals the segment of the first.
fn journal() -> Simulation {
    let simulation = Simulation::new();
    simulation.hold();
    let mut model = Model::default();
    for _ in 0..2 {
        let mut driver = Driver::open(&simulation, model, 1).expect("a healthy disk");
        driver.settle();
        for _ in 0..2 {
            driver.publish_small();
            driver.settle();
        }
        model = driver.model;
    }
    simulation.kill(1);
    simulation
}

#[test]
fn the_bytes_of_a_journal() {
    let simulation = journal();
    let mut text = String::new();
    for (name, length) in simulation.files() {
        writeln!(text, "{name}, {length} bytes").expect("memory");
        let bytes = simulation.bytes(&name).expect("it is there");
        for (line, chunk) in bytes.chunks(16).enumerate() {
            // Lines of zeros say nothing.
            if chunk.iter().any(|byte| *byte != 0) {
                let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(text, "{:06x}: {}", line * 16, hex.join(" ")).expect("memory");
            }
        }
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let path = folder.join(format!("journal.v{VERSION}.hex"));
    if !path.exists() && std::env::var("RINGMAIN_GOLDEN").as_deref() == Ok("write") {
        std::fs::write(&path, &text).expect("golden file");
    }
    let expected =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    assert!(text == expected, "the bytes of a journal changed: this needs a new VERSION\n{text}");
}
