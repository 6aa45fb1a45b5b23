//! File systems of a test's own: small ones, and ones that fail. What is not permitted is skipped with a line that says so.

// Each of the test programs uses a part of it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system that is gone when dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    target: PathBuf,
    _folder: tempfile::TempDir,
}

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        &self.target
    }

    /// In memory, of this size.
    pub(crate) fn tmpfs(bytes: u64) -> Option<Self> {
        let options = format!("size={bytes},mode=700");
        Self::mount(&["-t", "tmpfs", "-o", &options, "tmpfs"])
    }

    /// Gives a [`Self::tmpfs`] another size.
    pub(crate) fn resize(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.target).status();
        assert!(status.unwrap().success());
    }

    /// On a disk of this size that is a sparse file.
    pub(crate) fn loop_ext4(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        make_ext4(&image, bytes, &[])?;
        // The image has no name any more when this returns, and stays as long as it is mounted.
        Self::on_image(&image)
    }

    fn on_image(image: &Path) -> Option<Self> {
        Self::mount(&["-o", "loop", image.to_str().unwrap()])
    }

    fn mount(arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("mounted");
        fs::create_dir(&target).unwrap();
        done("mount", Command::new("mount").args(arguments).arg(&target))?;
        Some(Self { target, _folder: folder })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.target).status();
    }
}

fn make_ext4(image: &Path, bytes: u64, options: &[&str]) -> Option<()> {
    File::create(image).unwrap().set_len(bytes).unwrap();
    done("mkfs.ext4", Command::new("mkfs.ext4").args(["-q", "-m", "0"]).args(options).arg(image))
}

/// `None`, with a line, if it cannot be done here.
fn done(what: &str, command: &mut Command) -> Option<()> {
    match command.output() {
        Ok(output) if output.status.success() => return Some(()),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("skipped: {what} is not permitted here: {}", why.trim());
        }
        Err(error) => eprintln!("skipped: {what}: {error}"),
    }
    None
}

/// An ext4 on a thinly provisioned disk: what was never written, or was all zeros, has no room of its own, and writes to it
/// fail as soon as the store below is full.
#[derive(Debug)]
pub(crate) struct Thin {
    /// The file system.
    pub(crate) disk: Option<Mounted>,
    store: Mounted,
}

impl Thin {
    pub(crate) fn new(store_bytes: u64, disk_bytes: u64) -> Option<Self> {
        let store = Mounted::tmpfs(store_bytes)?;
        let image = store.path().join("image");
        // Without a journal of its own it does nothing by itself that could fail at another time.
        make_ext4(&image, disk_bytes, &["-O", "^has_journal", "-E", "lazy_itable_init=0"])?;
        let disk = Some(Mounted::on_image(&image)?);
        Some(Self { disk, store })
    }

    pub(crate) fn path(&self) -> &Path {
        self.disk.as_ref().expect("mounted").path()
    }

    /// From now on writes to blocks of zeros fail; everything that is there can be read. `None` if this cannot be done here.
    pub(crate) fn fail(&self) -> Option<()> {
        let image = self.store.path().join("image");
        nix::unistd::sync();
        done("fallocate", Command::new("fallocate").arg("--dig-holes").arg(image))?;
        let full = io::copy(&mut io::repeat(1), &mut File::create(self.filler()).unwrap());
        assert_eq!(full.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        Some(())
    }

    /// There is room again, and the file system is mounted anew.
    pub(crate) fn mend(&mut self) {
        fs::remove_file(self.filler()).unwrap();
        let disk = self.disk.take().expect("mounted");
        // Not lazily: it must be the same file system that is mounted next.
        let status = Command::new("umount").arg(disk.path()).status().unwrap();
        assert!(status.success());
        drop(disk);
        self.disk = Mounted::on_image(&self.store.path().join("image"));
        assert!(self.disk.is_some());
    }

    fn filler(&self) -> PathBuf {
        self.store.path().join("filler")
    }
}
