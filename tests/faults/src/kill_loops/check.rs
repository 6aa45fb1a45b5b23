//! What the receipts and the consumed lines must say together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::records::Records;

/// One process that published or consumed.
#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) publishes: bool,
    /// Whose records it publishes, by the number of the first life that did: under a name, those of a killed one from the start.
    pub(super) author: usize,
    /// Of a consumer: the number of its group.
    pub(super) group: usize,
    /// Deaths of the keeper before it.
    pub(super) era: u64,
    /// When it began and ended, by the count of beginnings and ends.
    pub(super) start: u64,
    pub(super) end: Option<u64>,
    /// It ended by itself: all it printed is acknowledged.
    pub(super) well: bool,
}

/// Where a life prints.
pub(super) fn output(folder: &Path, life: usize) -> PathBuf {
    folder.join(format!("out-{life}"))
}

/// One delivery of a message.
#[derive(Debug, Clone, Copy)]
struct Delivery {
    life: usize,
    redelivered: bool,
}

/// A message as consumers saw it.
#[derive(Debug)]
struct Seen {
    life: usize,
    number: usize,
    deliveries: Vec<Delivery>,
}

/// A message whose time was over, as the dead-letter queue has it.
#[derive(Debug, Clone, Copy)]
struct Letter {
    sequence: u64,
    life: usize,
    number: usize,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: Vec<String>,
    confirmed: usize,
    distinct: u64,
    highest: u64,
    again: usize,
    letters: u64,
}

impl Findings {
    fn problem(&mut self, text: String) {
        self.problems.push(text);
    }
}

/// Reads all outputs and compares them, of the consumers of one group. `letters`: what was in the dead-letter queue at the end, one
/// document a line.
pub(super) fn check(
    folder: &Path,
    lives: &[Life],
    records: &Records,
    group: usize,
    letters: &str,
) -> Findings {
    let mut findings = Findings::default();
    let mut seen: BTreeMap<u64, Seen> = BTreeMap::new();
    let is_one = |life: &Life| !life.publishes && life.group == group;
    for (life, _) in lives.iter().enumerate().filter(|(_, life)| is_one(life)) {
        consumed(folder, life, records, &mut seen, &mut findings);
    }
    expired(letters, lives, records, &mut seen, &mut findings);
    findings.distinct = seen.len() as u64;
    findings.highest = seen.keys().next_back().copied().unwrap_or(0);
    for (sequence, one) in &seen {
        deliveries(*sequence, &one.deliveries, lives, &mut findings);
    }
    let mut by_life: HashMap<usize, Vec<(usize, u64)>> = HashMap::new();
    for (sequence, one) in &seen {
        by_life.entry(one.life).or_default().push((one.number, *sequence));
    }
    for (author, _) in
        lives.iter().enumerate().filter(|(life, of)| of.publishes && of.author == *life)
    {
        let stored = by_life.remove(&author).unwrap_or_default();
        in_order(author, &stored, &mut findings);
        for (life, _) in
            lives.iter().enumerate().filter(|(_, of)| of.publishes && of.author == author)
        {
            confirmed(folder, life, life != author, &stored, &mut findings);
        }
    }
    for life in by_life.keys() {
        findings.problem(format!("records of life {life}, which is no publisher"));
    }
    findings
}

/// Lines that were written as a whole.
fn lines(folder: &Path, life: usize) -> Vec<String> {
    let text = fs::read(output(folder, life)).unwrap_or_default();
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    String::from_utf8_lossy(&text[..whole]).lines().map(str::to_owned).collect()
}

fn consumed(
    folder: &Path,
    life: usize,
    records: &Records,
    seen: &mut BTreeMap<u64, Seen>,
    findings: &mut Findings,
) {
    for line in lines(folder, life) {
        let document: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let (Some(sequence), Some(payload)) =
            (document["sequence"].as_u64(), document["payload"].as_str())
        else {
            findings.problem(format!("consumer {life} printed {line:?}"));
            continue;
        };
        let Some((publisher, number)) = records.identify(payload) else {
            findings.problem(format!("sequence {sequence} is altered: {payload:?}"));
            continue;
        };
        let redelivered = document["redelivered"].as_bool().unwrap_or(false);
        let delivery = Delivery { life, redelivered };
        let one = seen.entry(sequence).or_insert_with(|| Seen {
            life: publisher,
            number,
            deliveries: Vec::new(),
        });
        if (one.life, one.number) != (publisher, number) {
            findings.problem(format!(
                "sequence {sequence} stands for record {} of publisher {} and for record {number} of \
                 publisher {publisher}",
                one.number, one.life
            ));
        }
        one.deliveries.push(delivery);
    }
}

/// A message whose time was over is a dead letter once, and nobody has acknowledged it.
fn expired(
    letters: &str,
    lives: &[Life],
    records: &Records,
    seen: &mut BTreeMap<u64, Seen>,
    findings: &mut Findings,
) {
    let mut before = BTreeSet::new();
    for line in letters.lines() {
        findings.letters += 1;
        let Some(Letter { sequence, life, number }) = letter(line, records) else {
            findings.problem(format!("a dead letter that is none of these: {line}"));
            continue;
        };
        if !before.insert(sequence) {
            findings.problem(format!("sequence {sequence} became a dead letter twice"));
        }
        let one =
            seen.entry(sequence).or_insert_with(|| Seen { life, number, deliveries: Vec::new() });
        if (one.life, one.number) != (life, number) {
            findings.problem(format!(
                "the dead letter of {sequence} is record {number} of {life}: {one:?}"
            ));
        }
        if let Some(by) = one.deliveries.iter().find(|delivery| lives[delivery.life].well) {
            findings.problem(format!(
                "sequence {sequence} was acknowledged by consumer {} and is a dead letter",
                by.life
            ));
        }
    }
}

fn letter(line: &str, records: &Records) -> Option<Letter> {
    let document: serde_json::Value = serde_json::from_str(line).ok()?;
    let headers = document["headers"].as_array()?;
    let header = |name: &str| {
        let header = headers.iter().find(|header| header[0].as_str() == Some(name))?;
        header[1].as_str()
    };
    let is_expired = header("ringmain-reason")? == "expired";
    let sequence = header("ringmain-origin-sequence")?.parse().ok()?;
    let (life, number) = records.identify(document["payload"].as_str()?)?;
    is_expired.then_some(Letter { sequence, life, number })
}

/// A message that comes again is marked, and one that was acknowledged does not come again. A delivery alone is not
/// in the journal: after the death of the keeper, the next one may be the first that is known of.
fn deliveries(sequence: u64, all: &[Delivery], lives: &[Life], findings: &mut Findings) {
    findings.again += all.len().saturating_sub(1);
    let mut unmarked: HashMap<u64, usize> = HashMap::new();
    for delivery in all.iter().filter(|delivery| !delivery.redelivered) {
        *unmarked.entry(lives[delivery.life].era).or_default() += 1;
    }
    if unmarked.values().any(|count| *count > 1) {
        findings.problem(format!("sequence {sequence} came twice without a mark: {all:?}"));
    }
    for first in all.iter().filter(|delivery| lives[delivery.life].well) {
        let end = lives[first.life].end.unwrap_or(u64::MAX);
        if let Some(later) = all.iter().find(|later| lives[later.life].start > end) {
            findings.problem(format!(
                "sequence {sequence} was acknowledged by consumer {} and came again to {}",
                first.life, later.life
            ));
        }
    }
}

/// What a publisher sent is there from its first record on without a gap, once and in order.
fn in_order(author: usize, stored: &[(usize, u64)], findings: &mut Findings) {
    // In the order of the sequences, so the numbers must count up.
    for (expected, (number, sequence)) in stored.iter().enumerate() {
        if expected != *number {
            findings.problem(format!(
                "publisher {author}: record {number} has sequence {sequence} where record {expected} is due"
            ));
            return;
        }
    }
}

/// It is there at least as far as it was confirmed, under the sequences of the receipts. One that goes on for a killed one is
/// told that records were stored before.
fn confirmed(
    folder: &Path,
    life: usize,
    goes_on: bool,
    stored: &[(usize, u64)],
    findings: &mut Findings,
) {
    let receipts = lines(folder, life);
    findings.confirmed += receipts.len();
    if stored.len() < receipts.len() {
        findings.problem(format!(
            "publisher {life}: {} records were confirmed, {} consumed",
            receipts.len(),
            stored.len()
        ));
    }
    for ((number, sequence), receipt) in stored.iter().zip(&receipts) {
        let is_before = goes_on && receipt == "duplicate";
        if !is_before && receipt.parse() != Ok(*sequence) {
            findings.problem(format!(
                "publisher {life}: record {number} has sequence {sequence}, its receipt says {receipt}"
            ));
        }
    }
}

/// Nothing, or what is wrong in one text.
pub(super) fn verdict(findings: Findings, next_sequence: u64, expired: u64) -> Result<(), String> {
    let Findings { mut problems, confirmed, distinct, highest, again, letters } = findings;
    if distinct != highest || highest + 1 != next_sequence {
        problems.push(format!(
            "{distinct} records under sequences up to {highest}, and the next one is {next_sequence}"
        ));
    }
    if confirmed == 0 {
        problems.push("nothing was confirmed".into());
    }
    if letters != expired {
        problems.push(format!("{letters} dead letters, {expired} messages were counted"));
    }
    println!(
        "    {distinct} records, {confirmed} receipts, {again} deliveries again, {letters} expired"
    );
    if problems.is_empty() {
        return Ok(());
    }
    let count = problems.len();
    problems.truncate(5);
    Err(format!("{count} problems: {}", problems.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(publishes: bool, era: u64, start: u64, end: u64, well: bool) -> Life {
        Life { publishes, author: 0, group: 0, era, start, end: Some(end), well }
    }

    fn judge(receipts: &str, consumed: &[&[(u64, usize, bool)]], lives: &[Life]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::load();
        fs::write(output(folder.path(), 0), receipts).unwrap();
        for (index, deliveries) in consumed.iter().enumerate() {
            let text: String = deliveries
                .iter()
                .map(|(sequence, number, redelivered)| {
                    let payload = records.line(0, *number);
                    let document = serde_json::json!({
                        "sequence": sequence, "redelivered": redelivered, "payload": payload,
                    });
                    format!("{document}\n")
                })
                .collect();
            fs::write(output(folder.path(), index + 1), text).unwrap();
        }
        check(folder.path(), lives, &records, 0, "").problems
    }

    #[test]
    fn what_is_wrong_is_found() {
        let lives = [
            life(true, 0, 1, 9, true),
            life(false, 0, 2, 5, true),
            life(false, 0, 6, 8, false),
            life(false, 1, 10, 11, false),
        ];
        let judge = |receipts: &str, consumed: &[&[(u64, usize, bool)]]| {
            judge(receipts, consumed, &lives).len()
        };
        let (a, b, c) = ((1, 0, false), (2, 1, false), (3, 2, false));
        assert_eq!(judge("1\n2\n", &[&[a, b, c], &[], &[]]), 0);
        // A torn receipt counts for nothing.
        assert_eq!(judge("1\n2", &[&[a], &[], &[]]), 0);
        assert_eq!(judge("1\n2\n", &[&[a], &[], &[]]), 1, "lost");
        assert_eq!(judge("1\n", &[&[a, c], &[], &[]]), 1, "a gap");
        assert_eq!(judge("2\n", &[&[a], &[], &[]]), 1, "another sequence");
        assert_eq!(judge("1\nduplicate\n", &[&[a, b], &[], &[]]), 1, "stored before, by nobody");
        assert_eq!(judge("", &[&[a, (1, 1, true)], &[], &[]]), 1, "two records of one sequence");
        assert_eq!(judge("", &[&[a], &[(1, 0, true)], &[]]), 1, "again after its acknowledgement");
        assert_eq!(judge("", &[&[], &[a, a], &[]]), 1, "twice without a mark");
        assert_eq!(judge("", &[&[], &[a, (1, 0, true)], &[a]]), 0);
        assert_eq!(judge("", &[&[(1, 1, false), (2, 0, false)], &[], &[]]), 1, "out of order");
    }

    #[test]
    fn whoever_goes_on_stores_nothing_again() {
        let mut lives = [life(true, 0, 1, 2, false), life(true, 0, 3, 9, true)].to_vec();
        lives.push(life(false, 0, 4, 10, true));
        let folder = tempfile::tempdir().unwrap();
        let records = Records::load();
        let judge = |receipts: [&str; 2], consumed: &[(u64, usize)]| {
            for (life, receipts) in receipts.into_iter().enumerate() {
                fs::write(output(folder.path(), life), receipts).unwrap();
            }
            let text: String = consumed
                .iter()
                .map(|(sequence, number)| {
                    let payload = records.line(0, *number);
                    let document = serde_json::json!({
                        "sequence": sequence, "redelivered": false, "payload": payload,
                    });
                    format!("{document}\n")
                })
                .collect();
            fs::write(output(folder.path(), 2), text).unwrap();
            check(folder.path(), &lives, &records, 0, "").problems.len()
        };
        assert_eq!(judge(["1\n", "duplicate\n2\n"], &[(1, 0), (2, 1)]), 0);
        assert_eq!(judge(["1\n", "duplicate\n2\n"], &[(1, 0), (2, 0), (3, 1)]), 1, "twice");
        assert_eq!(judge(["1\n", "duplicate\nduplicate\n"], &[(1, 0)]), 1, "lost");
    }

    #[test]
    fn what_expires_is_a_dead_letter_once() {
        let lives =
            [life(true, 0, 1, 9, true), life(false, 0, 2, 5, true), life(false, 0, 6, 8, false)];
        let folder = tempfile::tempdir().unwrap();
        let records = Records::load();
        let print = |life: usize, sequences: &[(u64, usize)]| {
            let text: String = sequences
                .iter()
                .map(|(sequence, number)| {
                    let payload = records.line(0, *number);
                    let document = serde_json::json!({
                        "sequence": sequence, "redelivered": false, "payload": payload,
                    });
                    format!("{document}\n")
                })
                .collect();
            fs::write(output(folder.path(), life), text).unwrap();
        };
        let letter = |sequence: u64, number: usize| {
            let headers = [
                ["ringmain-reason".to_owned(), "expired".to_owned()],
                ["ringmain-origin-sequence".to_owned(), sequence.to_string()],
            ];
            let payload = records.line(0, number);
            format!("{}\n", serde_json::json!({ "headers": headers, "payload": payload }))
        };
        fs::write(output(folder.path(), 0), "1\n2\n3\n").unwrap();
        print(1, &[(1, 0)]);
        print(2, &[(2, 1)]);
        let judge = |letters: &[String]| {
            check(folder.path(), &lives, &records, 0, &letters.concat()).problems.len()
        };
        assert_eq!(judge(&[letter(2, 1), letter(3, 2)]), 0);
        assert_eq!(judge(&[letter(3, 2)]), 0);
        assert_eq!(judge(&[]), 1, "lost");
        assert_eq!(judge(&[letter(3, 2), letter(3, 2)]), 1, "twice");
        assert_eq!(judge(&[letter(1, 0), letter(3, 2)]), 1, "it was acknowledged");
        assert_eq!(judge(&[letter(3, 1)]), 1, "another one");
        assert_eq!(judge(&[letter(3, 2), "{}\n".to_owned()]), 1, "no letter");
    }
}
