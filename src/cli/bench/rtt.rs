//! `ringmain bench rtt`: round trips through two rings, over the floor of the same run.

use std::time::Duration;

use ringmain_client::WaitPolicy;
use ringmain_client::raw::protocol::Kind;
use serde::Serialize;

use super::lines::{SharedLines, lines_of, number};
use super::pair::{Medium, Report, Rings, Task, Window};
use super::pairs::{Pair, Verdict, judge};
use super::queues::{Place, Shape};
use crate::cli::Socket;
use crate::cli::args::RttArgs;
use crate::cli::crew::Crew;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::helper::{Order, Task as HelperTask};
use crate::cli::host::{self, Host};
use crate::cli::output::{Facts, Progress, Style, bar, print, print_json};
use crate::cli::signals;
use crate::cli::statistics::{Percentiles, Samples, curve};
use crate::cli::units;

/// Fewest pairs.
const PAIRS_MIN: u64 = 15;

/// A pair takes about this long if there is time for more than the fewest.
const PAIR_DURATION: Duration = Duration::from_millis(100);

/// What is measured.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) shape: Shape,
    pub(crate) size: usize,
    pub(crate) duration: Duration,
    pub(crate) wait: WaitPolicy,
    /// Of the one who measures and of the other.
    pub(crate) cpus: [Option<usize>; 2],
    /// Monotonic time after which windows are cut short; a pair without enough samples is dropped.
    pub(crate) until_ns: u64,
}

impl Config {
    fn new(args: &RttArgs) -> Outcome<Self> {
        Ok(Self {
            shape: Shape::new(args.kind.into(), args.slots, args.slot_size, args.size)?,
            size: args.size as usize,
            duration: args.duration,
            wait: args.wait,
            cpus: cpus(&args.cpus)?,
            until_ns: u64::MAX,
        })
    }
}

/// Two processors: those that are asked for, else of the first two cores; none if there is only one.
pub(crate) fn cpus(wanted: &[usize]) -> Outcome<[Option<usize>; 2]> {
    let available = host::cores(2);
    match wanted {
        [] => Ok(match available[..] {
            [first, second, ..] => [Some(first), Some(second)],
            _ => [None, None],
        }),
        [first, second] if first != second => {
            match [first, second].iter().find(|cpu| !available.contains(cpu)) {
                None => Ok([Some(*first), Some(*second)]),
                Some(cpu) => Err(Failure::usage(format_args!(
                    "--cpus: processor {cpu} is not one of those that this process may use \
                     ({available:?})"
                ))),
            }
        }
        _ => Err(Failure::usage("--cpus takes two different processors, such as 0,1")),
    }
}

/// What was measured, as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    bench: &'static str,
    kind: Kind,
    pub(crate) size: usize,
    lines: usize,
    pub(crate) wait: String,
    slots: u32,
    slot_size: u32,
    pub(crate) rtt_ns: Percentiles,
    /// Median over all floor windows.
    pub(crate) floor_ns: u64,
    pub(crate) floor: Percentiles,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    futex_rtt_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    membarrier_ns: Option<u64>,
    /// Round trips over a futex with a membarrier in front of each sleep: what `ratio_park` adds up from parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    futex_and_membarrier_rtt_ns: Option<u64>,
    pinned_cpus: Option<[usize; 2]>,
    oversubscribed: bool,
    host: Host,
    #[serde(skip)]
    pub(crate) samples: [Samples; 2],
}

pub(crate) fn run(socket: &Socket, args: &RttArgs) -> Outcome {
    let config = Config::new(args)?;
    signals::catch()?;
    let mut place = Place::new(socket)?;
    let mut progress = Progress::new();
    let answer = measure(&mut place, &config, &mut progress)?;
    drop(place);
    if args.format.json { print_json(&answer) } else { print(&text(&answer)) }
}

/// Measures on queues that it makes.
pub(crate) fn measure(
    place: &mut Place,
    config: &Config,
    progress: &mut Progress,
) -> Outcome<Answer> {
    let rings = Rings {
        socket: place.socket().to_path_buf(),
        out: place.make("bench-rtt-out", &config.shape)?,
        back: place.make("bench-rtt-back", &config.shape)?,
        size: config.size,
        wait: config.wait.to_string(),
    };
    let park = config.wait == WaitPolicy::Park;
    let windows = windows(config.duration, park);
    let lines = lines_of(config.size);
    let total = windows.len();
    let (report, pinned) =
        run_pair(&windows, lines, Some(rings), config.cpus, config.until_ns, |done| {
            progress.show(|| {
                #[allow(clippy::cast_precision_loss)] // a few hundred windows
                let share = done as f64 / total as f64;
                format!("measuring {} windows {}", total, bar(share, 30))
            });
        })?;
    progress.clear();
    let samples = |medium| {
        let found = report.samples.iter().find(|(used, _)| *used == medium);
        found.map_or_else(Samples::new, |(_, packed)| packed.unpack())
    };
    let (ring, floor) = (samples(Medium::Ring), samples(Medium::Floor));
    if ring.count() == 0 || floor.count() == 0 {
        return Err(Failure::new(
            Exit::Temporary,
            "no round trip was completed in time; measure longer with --duration",
        ));
    }
    Ok(Answer {
        bench: "rtt",
        kind: config.shape.kind,
        size: config.size,
        lines,
        wait: config.wait.to_string(),
        slots: config.shape.slots,
        slot_size: config.shape.slot_size,
        rtt_ns: ring.percentiles(),
        floor_ns: floor.at(0.5),
        floor: floor.percentiles(),
        verdict: judge(&pairs(&windows, &report.medians_ns)),
        futex_rtt_ns: park.then(|| samples(Medium::Futex).at(0.5)),
        membarrier_ns: park.then(|| samples(Medium::Membarrier).at(0.5)),
        futex_and_membarrier_rtt_ns: park.then(|| samples(Medium::FutexAndMembarrier).at(0.5)),
        pinned_cpus: pinned,
        oversubscribed: pinned.is_none(),
        host: Host::look(),
        samples: [ring, floor],
    })
}

/// Runs the windows in two processes; returns what the first measured and where both ran.
pub(crate) fn run_pair(
    windows: &[Window],
    lines: usize,
    rings: Option<Rings>,
    cpus: [Option<usize>; 2],
    until_ns: u64,
    mut progress: impl FnMut(u64),
) -> Outcome<(Report, Option<[usize; 2]>)> {
    let memory = SharedLines::create(lines)?;
    let keep = [number(&memory)];
    let task = |cpu| Task {
        windows: windows.to_vec(),
        memory: number(&memory),
        lines,
        rings: rings.clone(),
        cpu,
        until_ns,
    };
    let mut crew = Crew::new();
    let ping = crew.start("measuring", &HelperTask::Ping(task(cpus[0])), &keep)?;
    let pong = crew.start("answering", &HelperTask::Pong(task(cpus[1])), &keep)?;
    crew.wait_ready()?;
    crew.order_all(Order::Go)?;
    let mut reports = crew.results::<Report>(&[ping], |_, done| progress(done))?;
    let other = crew.results::<Option<usize>>(&[pong], |_, _| {})?.pop().flatten();
    let report = reports.pop().ok_or_else(|| Failure::internal("no report"))?;
    let pinned = report.cpu.zip(other).map(|(first, second)| [first, second]);
    Ok((report, pinned))
}

/// Floor, ring, floor, ring, ..., floor; with `park` also a bare futex and the membarrier beside each ring window.
fn windows(duration: Duration, park: bool) -> Vec<Window> {
    let total = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let pair = u64::try_from(PAIR_DURATION.as_nanos()).unwrap_or(u64::MAX);
    let count = (total / pair).max(PAIRS_MIN);
    let each = total / count;
    let window = |medium, share: u64| Window { medium, duration_ns: each * share / 100 };
    let one: &[Window] = if park {
        &[
            window(Medium::Floor, 10),
            window(Medium::Futex, 30),
            window(Medium::Ring, 40),
            window(Medium::Membarrier, 20),
        ]
    } else {
        &[window(Medium::Floor, 35), window(Medium::Ring, 65)]
    };
    let mut windows = Vec::new();
    for _ in 0..count {
        windows.extend_from_slice(one);
    }
    windows.push(one[0]);
    windows
}

/// Groups the medians: each ring window between two floor windows.
fn pairs(windows: &[Window], medians_ns: &[f64]) -> Vec<Pair> {
    let (mut pairs, mut pair) = (Vec::new(), Pair::default());
    let (mut futex, mut membarrier) = (None, None);
    for (window, median) in windows.iter().zip(medians_ns) {
        match window.medium {
            Medium::Floor => {
                if pair.floor_before > 0.0 {
                    pair.floor_after = *median;
                    pair.park = futex.take().zip(membarrier.take());
                    pairs.push(pair);
                }
                pair = Pair { floor_before: median.max(1.0), ..Pair::default() };
            }
            Medium::Ring => pair.ring = *median,
            Medium::Futex => futex = Some(*median),
            Medium::Membarrier => membarrier = Some(*median),
            Medium::FutexAndMembarrier => {}
        }
    }
    pairs
}

fn text(answer: &Answer) -> String {
    let style = Style::stdout();
    let mut facts = Facts::default();
    let rtt = &answer.rtt_ns;
    facts.add(
        "message",
        format!(
            "{} bytes ({} cache lines with its header), {}, {} slots of {}, {} waiting",
            answer.size,
            answer.lines,
            format!("{:?}", answer.kind).to_lowercase(),
            answer.slots,
            units::bytes(answer.slot_size.into()),
            answer.wait
        ),
    );
    facts.add("host", answer.host.line());
    facts.add(
        "processors",
        answer.pinned_cpus.map_or_else(
            || "not pinned: fewer than two cores, so that the figures say little".to_string(),
            |[first, second]| format!("{first} and {second}, pinned"),
        ),
    );
    facts.add("round trip", percentile_line(rtt));
    facts.add("floor", percentile_line(&answer.floor));
    facts.add(
        "ring over floor",
        answer.verdict.ratio_p50.map_or_else(
            || "unknown: the floor changed during every pair; measure again".to_string(),
            |ratio| style.bold(&format!("{ratio:.2}")),
        ),
    );
    if let (Some(futex), Some(membarrier)) = (answer.futex_rtt_ns, answer.membarrier_ns) {
        facts.add("bare futex round trip", format!("p50 {}", units::nanos(futex)));
        facts.add("membarrier before a sleep", format!("p50 {}", units::nanos(membarrier)));
    }
    if let Some(both) = answer.futex_and_membarrier_rtt_ns {
        facts.add("futex round trip with membarriers", format!("p50 {}", units::nanos(both)));
    }
    if let Some(ratio) = answer.verdict.ratio_park {
        facts.add("ring over futex + 2 membarriers", style.bold(&format!("{ratio:.2}")));
    }
    facts.add(
        "pairs",
        format!("{} kept, {} dropped", answer.verdict.pairs_kept, answer.verdict.pairs_dropped),
    );
    facts.render(style) + "\n" + &drawing(answer)
}

/// `p50 140 ns  p99 ...`
pub(crate) fn percentile_line(percentiles: &Percentiles) -> String {
    format!(
        "p50 {}, p99 {}, p99.9 {}, max {} ({} samples)",
        units::nanos(percentiles.p50),
        units::nanos(percentiles.p99),
        units::nanos(percentiles.p999),
        units::nanos(percentiles.max),
        units::count(percentiles.samples)
    )
}

/// Ring and floor in one picture.
pub(crate) fn drawing(answer: &Answer) -> String {
    let [ring, floor] = &answer.samples;
    curve(&[('.', "floor", floor), ('*', "round trip", ring)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_make_pairs() {
        for park in [false, true] {
            let windows = windows(Duration::from_millis(100), park);
            #[allow(clippy::cast_precision_loss)] // small
            let medians: Vec<f64> = (1..=windows.len()).map(|n| n as f64).collect();
            let pairs = pairs(&windows, &medians);
            assert_eq!(pairs.len(), 15);
            assert!(pairs.iter().all(|pair| pair.floor_after > pair.ring));
            assert!(pairs.iter().all(|pair| pair.ring > pair.floor_before));
            assert!(pairs.iter().all(|pair| pair.park.is_some() == park));
        }
        assert_eq!(windows(Duration::from_secs(6), false).len(), 121);
    }

    #[test]
    fn processors_that_are_asked_for_must_exist() {
        assert!(cpus(&[0]).is_err());
        assert!(cpus(&[0, 0]).is_err());
        assert!(cpus(&[0, 100_000]).is_err());
        assert!(cpus(&[]).is_ok());
    }
}
