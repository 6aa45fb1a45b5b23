//! Makes a journal usable again that lacks something, without what is lost. Files are moved aside, never deleted.

use serde::Serialize;

use super::format::{self, FILLER, HEADER_BYTES, Header};
use super::open::Survey;
use super::recovery::Loss;
use super::scan::FileFacts;
use super::table::{Entry, file_name};
use super::types::{Damage, Lsn, OpenError};
use super::verify::verify;
use crate::disk::{BLOCK_BYTES, Buffer, Disk};

/// Damages that are mended one after the other before giving up.
const ROUNDS: usize = 64;

/// What a repair has done, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// The damages, in words, in the order in which they were found.
    pub damages: Vec<String>,
    /// Records that are lost: first and last, both included.
    pub lost: Vec<(Lsn, Lsn)>,
    /// Files that were moved aside: their new names.
    pub aside: Vec<String>,
    /// It was done, and the journal verifies.
    pub repaired: bool,
}

fn io(call: &'static str, file: &str, offset: u64) -> impl FnOnce(std::io::Error) -> OpenError {
    move |error| OpenError::Io { call, file: file.to_owned(), offset, error }
}

/// Mends a journal. Without `accept_loss` it only says what is damaged.
///
/// `disk` is called for a fresh view of the folder before each look.
///
/// # Errors
/// [`OpenError::Corrupt`] if nothing usable is left: then the folder can only be moved away as a whole.
pub fn repair<D: Disk>(
    mut disk: impl FnMut() -> std::io::Result<D>,
    accept_loss: bool,
) -> Result<RepairReport, OpenError> {
    let mut report = RepairReport::default();
    for _ in 0..ROUNDS {
        let mut folder = disk().map_err(io("open", "", 0))?;
        if accept_loss {
            finish_interrupted(&mut folder)?;
        }
        let damage = match verify(&mut folder) {
            Ok(_) => {
                report.repaired = accept_loss;
                return Ok(report);
            }
            Err(OpenError::Corrupt(damage)) => damage,
            Err(other) => return Err(other),
        };
        drop(folder);
        report.damages.push(damage.to_string());
        if !accept_loss {
            return Ok(report);
        }
        let mut folder = disk().map_err(io("open", "", 0))?;
        mend(&mut folder, &damage, &mut report)?;
    }
    Err(OpenError::Corrupt(Damage {
        lsn: 0,
        file: String::new(),
        offset: 0,
        what: format!("{ROUNDS} damages were mended and there are more; run the repair again"),
    }))
}

/// A repair that was interrupted between its two renames.
fn finish_interrupted(disk: &mut impl Disk) -> Result<(), OpenError> {
    let names = disk.list().map_err(io("list", "", 0))?;
    for (name, _) in &names {
        let Some(target) = name.strip_suffix(REPAIRED) else { continue };
        if names.iter().any(|(other, _)| other == target) {
            move_aside(disk, name, &mut Vec::new())?;
        } else {
            disk.rename(name, target).map_err(io("rename", name, 0))?;
        }
    }
    disk.sync_directory().map_err(io("sync", "", 0))
}

const REPAIRED: &str = ".repaired";

/// The first free name of its kind.
fn move_aside(disk: &mut impl Disk, name: &str, aside: &mut Vec<String>) -> Result<(), OpenError> {
    let names = disk.list().map_err(io("list", "", 0))?;
    let is_free = |new: &String| !names.iter().any(|(other, _)| other == new);
    let new = (1..).map(|number| format!("{name}.aside-{number}")).find(is_free);
    let new = new.unwrap_or_default();
    disk.rename(name, &new).map_err(io("rename", name, 0))?;
    aside.push(new);
    Ok(())
}

fn mend(disk: &mut impl Disk, damage: &Damage, report: &mut RepairReport) -> Result<(), OpenError> {
    let survey = match Survey::of(disk, Loss::Accepted) {
        Ok(survey) => survey,
        // A file of a wrong length stands in the way.
        Err(OpenError::Corrupt(wrong)) if wrong == *damage && !wrong.file.is_empty() => {
            move_aside(disk, &wrong.file, &mut report.aside)?;
            return disk.sync_directory().map_err(io("sync", "", 0));
        }
        Err(other) => return Err(other),
    };
    let entries = survey.recovered.old.iter().map(|old| (old.entry, Some(old.file)));
    // A hole that only the verification found, behind a valid footer, is named by its file.
    let mut named =
        entries.filter(|(_, file)| file.is_some_and(|file| survey.files[file].name == damage.file));
    let broken = survey.recovered.broken.first().copied().or_else(|| {
        let in_head =
            survey.recovered.head.is_some_and(|(head, _)| survey.files[head].name == damage.file);
        if in_head { None } else { named.next_back() }
    });
    match broken {
        Some((entry, file)) => fill(disk, survey, (entry, file), report),
        None => cut(disk, &survey, report),
    }
}

/// Puts fillers where a sealed segment has holes.
fn fill(
    disk: &mut impl Disk,
    mut survey: Survey,
    (entry, file): (Entry, Option<usize>),
    report: &mut RepairReport,
) -> Result<(), OpenError> {
    let name = file_name(entry.file_number);
    let bytes = match file {
        Some(file) => survey.files[file].bytes,
        None => entry.end_offset + BLOCK_BYTES as u64 * 16,
    };
    let bytes = bytes.max(super::types::Config::SEGMENT_BYTES_MIN);
    let mut content = Buffer::new(usize::try_from(bytes).unwrap_or(usize::MAX));
    let mut holes = vec![(None, entry_end(&entry))];
    if let Some(file) = file {
        let facts = &mut survey.files[file];
        facts.scan(disk)?;
        disk.read(facts.file, 0, &mut content).map_err(io("read", &name, 0))?;
        holes = holes_of(facts, &entry);
    }
    for (before, after) in holes {
        let (first_lsn, offset, previous, durable_lsn) = match before {
            Some(before) => {
                let before: Header = before;
                (before.end_lsn(), before.end_offset(), before.chain(), before.durable_lsn)
            }
            None => (entry.first_lsn, 0, 0, 0),
        };
        let (end_lsn, end_offset, substitute) = after;
        let mut header = Header {
            flags: FILLER,
            journal_id: survey.recovered.journal_id,
            incarnation: entry.incarnation,
            epoch: entry.epoch,
            offset,
            first_lsn,
            durable_lsn,
            count: u32::try_from(end_lsn - first_lsn).unwrap_or(u32::MAX),
            length: u32::try_from(end_offset - offset).unwrap_or(u32::MAX),
            file_blocks: u32::try_from(bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX),
            previous,
            substitute,
            ..Header::default()
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = usize::try_from(end_offset).unwrap_or(usize::MAX);
        content[start + HEADER_BYTES..end].fill(0);
        format::seal(&mut content[start..end], &mut header);
        report.lost.push((first_lsn, end_lsn.saturating_sub(1)));
    }
    // The index names what is lost.
    let trailer = content.len() - BLOCK_BYTES;
    content[trailer..].fill(0);
    replace(disk, &name, file.is_some(), &content, report)
}

/// End of the journal's part of a segment: LSN, place, chain value.
fn entry_end(entry: &Entry) -> (Lsn, u64, u64) {
    (entry.end_lsn, entry.end_offset, entry.chain)
}

/// The batch before each hole, and what must come behind it.
fn holes_of(facts: &FileFacts, entry: &Entry) -> Vec<(Option<Header>, (Lsn, u64, u64))> {
    let found = facts.found.as_deref().unwrap_or_default();
    let mut holes = Vec::new();
    let mut before: Option<Header> = None;
    for batch in found {
        let header = &batch.header;
        let mine = (header.epoch, header.incarnation) == (entry.epoch, entry.incarnation)
            && batch.error.is_none()
            && header.end_offset() <= entry.end_offset;
        let (lsn, offset, chain) = match &before {
            None => (entry.first_lsn, 0, None),
            Some(before) => (before.end_lsn(), before.end_offset(), Some(before.chain())),
        };
        if !mine || header.offset < offset || header.first_lsn < lsn {
            continue;
        }
        let follows = header.offset == offset
            && header.first_lsn == lsn
            && chain.is_none_or(|chain| chain == header.previous);
        if !follows && header.offset > offset {
            holes.push((before, (header.first_lsn, header.offset, header.previous)));
        } else if !follows {
            continue;
        }
        before = Some(*header);
    }
    let end = before.map_or((entry.first_lsn, 0), |last| (last.end_lsn(), last.end_offset()));
    if end != (entry.end_lsn, entry.end_offset) {
        holes.push((before, entry_end(entry)));
    }
    holes
}

/// Writes a file anew and moves the old one aside.
fn replace(
    disk: &mut impl Disk,
    name: &str,
    exists: bool,
    content: &Buffer,
    report: &mut RepairReport,
) -> Result<(), OpenError> {
    let new = format!("{name}{REPAIRED}");
    let file = disk.create(&new, content.len() as u64).map_err(io("create", &new, 0))?;
    disk.write(file, 0, content).map_err(io("write", &new, 0))?;
    disk.sync(file).map_err(io("sync", &new, 0))?;
    disk.close(file);
    disk.sync_directory().map_err(io("sync", "", 0))?;
    if exists {
        move_aside(disk, name, &mut report.aside)?;
    }
    disk.rename(&new, name).map_err(io("rename", &new, 0))?;
    disk.sync_directory().map_err(io("sync", "", 0))
}

/// Ends the journal where its last segment ends, and removes every witness of more.
fn cut(disk: &mut impl Disk, survey: &Survey, report: &mut RepairReport) -> Result<(), OpenError> {
    let recovered = &survey.recovered;
    let end_lsn = recovered.end_lsn;
    report.lost.push((end_lsn, recovered.witnessed.max(end_lsn)));
    for (at, facts) in survey.files.iter().enumerate() {
        let live = recovered.old.iter().any(|old| old.file == at);
        let headers = facts.found.iter().flatten().map(|batch| &batch.header);
        let tells = headers.chain(&facts.first).any(|header| header.durable_lsn >= end_lsn);
        if let Some((head, count)) = recovered.head
            && head == at
        {
            let found = facts.found.as_deref().unwrap_or_default();
            let end = found[..count].last().map_or(0, |batch| batch.header.end_offset());
            let mut content = Buffer::new(usize::try_from(facts.bytes).unwrap_or(usize::MAX));
            disk.read(facts.file, 0, &mut content).map_err(io("read", &facts.name, 0))?;
            content[usize::try_from(end).unwrap_or(usize::MAX)..].fill(0);
            replace(disk, &facts.name, true, &content, report)?;
        } else if !live && tells {
            move_aside(disk, &facts.name, &mut report.aside)?;
        } else if facts.trailer.is_some_and(|trailer| trailer.durable_lsn >= end_lsn) {
            // A footer is derived from its segment, and written again.
            let nothing = Buffer::new(BLOCK_BYTES);
            let offset = facts.bytes - BLOCK_BYTES as u64;
            disk.write(facts.file, offset, &nothing).map_err(io("write", &facts.name, offset))?;
        }
    }
    disk.sync_directory().map_err(io("sync", "", 0))
}
