//! Which journals a folder has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::exit::{Exit, Failure, Outcome};

/// Of one journal.
pub(super) struct Folder {
    pub(super) path: PathBuf,
}

/// The journals of a daemon's data folder, or the one that this folder is.
pub(super) fn journals(folder: &Path) -> Outcome<Vec<Folder>> {
    let fail = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotADirectory => none(folder),
        _ => Failure::file(folder, "look into", error),
    };
    let (mut shards, mut files) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).map_err(|error| fail(&error))? {
        let entry = entry.map_err(|error| fail(&error))?;
        let kind = entry.file_type().map_err(|error| fail(&error))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if kind.is_dir() && name.strip_prefix("shard-").is_some_and(is_number) {
            let mut inside = fs::read_dir(entry.path()).map_err(|error| fail(&error))?;
            // Without a file nothing could be said of it, least of all that it is whole.
            if !inside
                .any(|file| file.is_ok_and(|file| is_segment(&file.file_name().to_string_lossy())))
            {
                return Err(none(&entry.path()));
            }
            shards.push(Folder { path: entry.path() });
        }
        files += u32::from(kind.is_file() && is_segment(&name));
    }
    shards.sort_by(|a, b| a.path.cmp(&b.path));
    match (shards.is_empty(), files) {
        (false, _) => Ok(shards),
        (true, 1..) => Ok(vec![Folder { path: folder.to_path_buf() }]),
        (true, 0) => Err(none(folder)),
    }
}

fn none(folder: &Path) -> Failure {
    Failure::new(
        Exit::Data,
        format_args!(
            "{} has no journal: name the --data-dir of a daemon, or a folder shard-N in it",
            folder.display()
        ),
    )
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_segment(name: &str) -> bool {
    let number = name.strip_prefix("segment-").and_then(|rest| rest.strip_suffix(".journal"));
    number.is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_and_a_journal_folder_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(journals(folder.path()).is_err());
        for name in ["shard-1", "shard-0", "shard-x", "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert!(journals(folder.path()).is_err(), "folders without a file");
        for name in ["shard-1", "shard-0"] {
            fs::write(folder.path().join(name).join("segment-00000001.journal"), "").unwrap();
        }
        let found = journals(folder.path()).unwrap();
        let names: Vec<_> = found.iter().filter_map(|f| f.path.file_name()?.to_str()).collect();
        assert_eq!(names, ["shard-0", "shard-1"]);
    }
}
