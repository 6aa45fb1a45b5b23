//! The demonstration's table and what belongs to it, for people.

use super::flow::Check;
use super::{Answer, AnyStage, DurableStage, Stage};
use crate::cli::bench::rtt;
use crate::cli::output::{Style, Table};
use crate::cli::units;

pub(super) fn text(answer: &Answer) -> String {
    let style = Style::stdout();
    let mut text = format!("\nrecords  {}\nhost     {}\n\n", answer.source, answer.host.line());
    text.push_str(&table(answer).render(style));
    for stage in &answer.stages {
        text.push_str(&match stage {
            AnyStage::Direct(stage) => explain(stage, style),
            AnyStage::Durable(stage) => explain_durable(stage, style),
        });
    }
    let verdict = if answer.verified {
        style.green("every record arrived once, unaltered")
    } else {
        style.red("NOT every record arrived once, unaltered")
    };
    text.push_str(&format!("\n{verdict}\n"));
    text
}

fn table(answer: &Answer) -> Table {
    let mut table = Table::new(&[
        "QUEUE",
        "PROCESSES",
        "MESSAGES",
        "RATE",
        "PAYLOAD",
        "RTT P50",
        "P99",
        "P99.9",
        "MAX",
        "OVER FLOOR",
        "VERIFIED",
    ]);
    for stage in &answer.stages {
        table.row(match stage {
            AnyStage::Direct(stage) => direct_row(stage),
            AnyStage::Durable(stage) => durable_row(stage),
        });
    }
    table
}

fn direct_row(Stage { name, flow, latency }: &Stage) -> Vec<String> {
    let crowded = if flow.oversubscribed { " *" } else { "" };
    let ratio = latency.verdict.ratio_p50;
    vec![
        (*name).to_string(),
        format!("{} to {}{crowded}", flow.producers, flow.consumers),
        units::count(flow.messages),
        units::rate(flow.messages_per_s),
        units::bytes_rate(flow.bytes_per_s),
        units::nanos(latency.rtt_ns.p50),
        units::nanos(latency.rtt_ns.p99),
        units::nanos(latency.rtt_ns.p999),
        units::nanos(latency.rtt_ns.max),
        ratio.map_or_else(|| "-".to_string(), |ratio| format!("{ratio:.2}")),
        yes(&flow.check),
    ]
}

/// Its latencies are those of confirmations.
fn durable_row(DurableStage { name, answer }: &DurableStage) -> Vec<String> {
    let crowded = if answer.oversubscribed { " *" } else { "" };
    let confirm = &answer.latency.confirm_us;
    vec![
        (*name).to_string(),
        format!("{} to {}{crowded}", answer.producers, answer.consumers),
        units::count(answer.messages),
        units::rate(answer.messages_per_s),
        units::bytes_rate(answer.bytes_per_s),
        units::micros(confirm.p50),
        units::micros(confirm.p99),
        units::micros(confirm.p999),
        units::micros(confirm.max),
        "-".to_string(),
        yes(&answer.check),
    ]
}

fn yes(check: &Check) -> String {
    if check.verified { "yes" } else { "NO" }.to_string()
}

fn explain_durable(DurableStage { name, answer }: &DurableStage, style: Style) -> String {
    let mut text = format!("\n{}\n", style.bold(name));
    let (check, killed) = (&answer.check, &answer.killed);
    text.push_str(&format!("  {}\n", check.method));
    if !check.verified {
        text.push_str(&style.red(&format!(
            "  {} confirmed, {} received: {} lost, {} doubled, {} altered, {} out of order\n",
            answer.sent,
            answer.messages,
            check.lost,
            check.doubled,
            check.altered,
            check.out_of_order
        )));
    }
    text.push_str(&format!(
        "  keeper and broker were killed (SIGKILL) after {} confirmed records; the new daemon served \
         after {} ms\n  {} records were on the way without a confirmation, {} of them are in the \
         journal; all were sent again\n  the latencies are from send to confirmation, {} records on \
         the way in each producer\n",
        units::count(killed.confirmed),
        killed.restart_ms,
        killed.unconfirmed,
        killed.unconfirmed_found,
        answer.window,
    ));
    text
}

fn explain(stage: &Stage, style: Style) -> String {
    let Stage { name, flow, latency } = stage;
    let mut text = format!("\n{}\n", style.bold(name));
    let check = &flow.check;
    text.push_str(&format!("  {}\n", check.method));
    if !check.verified {
        text.push_str(&style.red(&format!(
            "  {} sent, {} received: {} lost, {} doubled, {} altered, {} out of order\n",
            flow.sent, flow.messages, check.lost, check.doubled, check.altered, check.out_of_order
        )));
    }
    if flow.oversubscribed {
        text.push_str(
            "  * more busy processes than cores: the rate says how it copes, not what it can\n",
        );
    }
    text.push_str(&format!(
        "  round trips of {} between two processes, {} waiting; floor = the same cache lines without a \
         ring: p50 {}\n\n",
        units::bytes(latency.size as u64),
        latency.wait,
        units::nanos(latency.floor_ns),
    ));
    text.push_str(&style.cyan(&rtt::drawing(latency)));
    text
}
