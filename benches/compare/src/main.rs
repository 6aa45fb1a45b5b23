//! Side by side with other queues: interleaved pairs, a floor probe around each, the median of the ratios.

mod contenders;
mod memory;
mod payload;
mod round_trip;
mod vyukov;

use ringmain_client::protocol::Kind;
use serde_json::json;

use crate::memory::Members;
use crate::vyukov::Duties;

/// Pairs that count; pairs whose floor probes differ by more than this are dropped and counted.
const FLOOR_DRIFT_MAX: f64 = 0.10;

/// The mpmc ring is measured both ways.
const MEMBERS: [(Members, &str); 2] =
    [(Members::OneOfEachRole, "one handle of each role"), (Members::More, "more handles attached")];

struct Pairs {
    ours: Vec<f64>,
    theirs: Vec<f64>,
    ratios: Vec<f64>,
    floors: Vec<f64>,
    dropped: usize,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn compare(pairs: usize, ours: impl Fn() -> f64, theirs: impl Fn() -> f64) -> Pairs {
    let mut result =
        Pairs { ours: vec![], theirs: vec![], ratios: vec![], floors: vec![], dropped: 0 };
    while result.ratios.len() < pairs && result.dropped < 4 * pairs {
        let before = contenders::floor_ns();
        let (a, b) = (ours(), theirs());
        let after = contenders::floor_ns();
        if (before - after).abs() > FLOOR_DRIFT_MAX * before.min(after) {
            result.dropped += 1;
            continue;
        }
        result.ours.push(a);
        result.theirs.push(b);
        result.ratios.push(a / b);
        result.floors.push((before + after) / 2.0);
    }
    result
}

fn print(name: &str, pairs: &Pairs) {
    println!(
        "{}",
        json!({
            "comparison": name,
            "ours_per_s": median(&pairs.ours).round(),
            "theirs_per_s": median(&pairs.theirs).round(),
            "ratio": (median(&pairs.ratios) * 1000.0).round() / 1000.0,
            "floor_ns": median(&pairs.floors).round(),
            "pairs_kept": pairs.ratios.len(),
            "pairs_dropped": pairs.dropped,
        })
    );
}

fn print_round_trips(name: &str, pairs: &Pairs) {
    println!(
        "{}",
        json!({
            "comparison": name,
            "ours_ns": (median(&pairs.ours) * 10.0).round() / 10.0,
            "theirs_ns": (median(&pairs.theirs) * 10.0).round() / 10.0,
            "ratio": (median(&pairs.ratios) * 1000.0).round() / 1000.0,
            "floor_ns": median(&pairs.floors).round(),
            "pairs_kept": pairs.ratios.len(),
            "pairs_dropped": pairs.dropped,
        })
    );
}

fn main() {
    if ringmain_client::sync::INSTRUMENTED {
        eprintln!(
            "ringmain-compare: built together with the fault suites, whose switches slow the rings down; build it alone: \
             cargo run --release -p ringmain-compare"
        );
        std::process::exit(78);
    }
    let mut arguments = std::env::args().skip(1);
    let which = arguments.next().unwrap_or_else(|| "all".into());
    let pairs: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(15);
    let slots: u32 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(4096);
    let messages = 4_000_000;
    let ours = |kind, members, slot_size, batch| {
        contenders::ringmain(kind, members, slots, slot_size, batch, messages)
    };
    if which == "all" || which == "rtrb" {
        for slot_size in [80, 128] {
            let result = compare(
                pairs,
                || ours(Kind::Spsc, Members::OneOfEachRole, slot_size, 16),
                || contenders::rtrb(slots as usize, 16, messages),
            );
            print(&format!("spsc batch 16, {slots} slots of {slot_size} B, against rtrb"), &result);
        }
    }
    if which == "all" || which == "array-queue" {
        for (members, who) in MEMBERS {
            for slot_size in [80, 128] {
                let result = compare(
                    pairs,
                    || ours(Kind::Mpmc, members, slot_size, 1),
                    || contenders::array_queue(slots as usize, messages),
                );
                let name =
                    format!("mpmc, {who}, {slots} slots of {slot_size} B, against ArrayQueue");
                print(&name, &result);
            }
        }
    }
    if which == "all" || which == "owner" {
        // A round trip is a time: below 1 the ring with owners is the faster one.
        for (members, who) in MEMBERS {
            for (duties, name) in [
                (Duties::AsRings, "owner in the word against plain stamps"),
                (Duties::None, "everything against bare stamps"),
            ] {
                let ours = || round_trip::ringmain(Kind::Mpmc, members);
                let result = compare(pairs, ours, || round_trip::vyukov(duties));
                print_round_trips(&format!("mpmc 48 B round trip, {who}, {name}"), &result);
            }
        }
    }
    if which == "all" || which == "floor" {
        for kind in [Kind::Spsc, Kind::Mpmc] {
            let result = compare(
                pairs,
                || round_trip::ringmain(kind, Members::OneOfEachRole),
                round_trip::floor,
            );
            print_round_trips(&format!("{kind:?} 48 B round trip against one line"), &result);
        }
    }
}
