//! Runs named cases one after the other in one thread and prints a summary like that of the ordinary test harness.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// How much a suite does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// For every commit.
    Short,
    /// Everything.
    Long,
}

impl Size {
    /// `short` (the default) or `long`, as the environment variable says.
    pub fn from_environment(variable: &str) -> Self {
        match std::env::var(variable).as_deref() {
            Err(_) | Ok("" | "short") => Self::Short,
            Ok("long") => Self::Long,
            Ok(other) => {
                eprintln!("{variable}={other}: must be short or long");
                std::process::exit(64);
            }
        }
    }

    /// One of two values.
    pub fn choose<T>(self, short: T, long: T) -> T {
        match self {
            Self::Short => short,
            Self::Long => long,
        }
    }
}

/// Failures of one case that are printed; the rest is counted.
const PRINTED_MAX: usize = 5;

/// Collects results.
#[derive(Debug)]
pub struct Runner {
    filters: Vec<String>,
    unit: &'static str,
    passed: u32,
    failed: u32,
    units: u64,
    start: Instant,
}

/// What one case did.
#[derive(Debug, Default)]
pub struct Tally {
    /// Deaths, mutations, messages: what the suite counts.
    pub units: u64,
    failures: u64,
    printed: Vec<String>,
}

impl Tally {
    /// Counts one unit, and the failure if it is one.
    pub fn check(&mut self, label: impl FnOnce() -> String, result: Result<(), String>) {
        self.units += 1;
        if let Err(error) = result {
            self.failures += 1;
            if self.printed.len() < PRINTED_MAX {
                self.printed.push(format!("{}: {error}", label()));
            }
        }
    }

    /// Units that failed.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Whether a case should go on: after many failures it need not.
    pub fn worth_going_on(&self) -> bool {
        self.failures < 50
    }
}

/// Runs something that must not panic; a panic is an error like any other.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(format!("panic: {text}"))
        }
    }
}

/// A panic is reported by whoever catches it: one line is enough, and none when there are very many.
fn quiet_panics() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PANICS: AtomicU32 = AtomicU32::new(0);
    std::panic::set_hook(Box::new(|panic| {
        if PANICS.fetch_add(1, Ordering::Relaxed) < 20 {
            eprintln!("{}", panic.to_string().replace('\n', " "));
        }
    }));
}

impl Runner {
    /// Filters come from the command line as with the ordinary harness; options are ignored.
    pub fn new(unit: &'static str, arguments: impl Iterator<Item = String>) -> Self {
        quiet_panics();
        Self {
            filters: arguments.filter(|argument| !argument.starts_with('-')).collect(),
            unit,
            passed: 0,
            failed: 0,
            units: 0,
            start: Instant::now(),
        }
    }

    /// Runs a case unless it is filtered out.
    pub fn case(&mut self, name: &str, work: impl FnOnce(&mut Tally)) {
        if !self.filters.is_empty() && !self.filters.iter().any(|filter| name.contains(filter)) {
            return;
        }
        let start = Instant::now();
        let mut tally = Tally::default();
        let end = guarded(|| {
            work(&mut tally);
            Ok(())
        });
        if let Err(error) = end {
            tally.check(|| "outside of any check".into(), Err(error));
        }
        let verdict = if tally.failures == 0 { "ok" } else { "FAILED" };
        println!(
            "test {name} ... {verdict} ({} {}, {:.1} s)",
            tally.units,
            self.unit,
            start.elapsed().as_secs_f64()
        );
        for line in &tally.printed {
            println!("    {line}");
        }
        if tally.failures > tally.printed.len() as u64 {
            println!("    ... {} failures in all", tally.failures);
        }
        self.units += tally.units;
        if tally.failures == 0 {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    /// Prints the summary; the exit code.
    pub fn finish(self) -> i32 {
        let verdict = if self.failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {verdict}. {} passed; {} failed; {} {}; finished in {:.1} s",
            self.passed,
            self.failed,
            self.units,
            self.unit,
            self.start.elapsed().as_secs_f64()
        );
        i32::from(self.failed > 0)
    }
}
