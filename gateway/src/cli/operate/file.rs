//! A file that is there whole, or not.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A file under another name until it is whole. Dropped before, it is removed.
pub(super) struct Part {
    target: PathBuf,
    path: PathBuf,
    /// Locked: two that write the same file would mix.
    file: File,
    force: bool,
    done: bool,
}

impl Part {
    /// Begins `target`, which must not be there unless `force`. It holds a store's content: it is for its
    /// owner alone.
    pub(super) fn create(target: &Path, force: bool) -> Result<Self, String> {
        match target.symlink_metadata() {
            Ok(_) if !force => return Err(exists(target)),
            // A device would be gone, and a folder cannot be.
            Ok(found) if !found.is_file() && !found.is_symlink() => {
                return Err(format!("{} is no file; - is standard output", target.display()));
            }
            _ => {}
        }
        let mut name = target
            .file_name()
            .ok_or_else(|| format!("{} names no file", target.display()))?
            .to_owned();
        name.push(".part");
        let path = target.with_file_name(name);
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            // Not where somebody else says.
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!("{} is being written by another backup", path.display()));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // It may have been there: of one that was killed, or of somebody else, who could read it.
        file.set_permissions(Permissions::from_mode(0o600))
            .and_then(|()| file.set_len(0))
            .map_err(failed)?;
        Ok(Self {
            target: target.to_owned(),
            path,
            file,
            force,
            done: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes it durable, and gives it its name.
    pub(super) fn finish(mut self) -> Result<(), String> {
        let put = self.file.sync_all().and_then(|()| self.put());
        self.done = put.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&self.target),
            _ => format!("{}: {error}", self.target.display()),
        })?;
        Ok(())
    }

    /// Returns whether the name it had is free.
    fn put(&self) -> io::Result<bool> {
        // A link, unlike a new name, never takes the place of a file that has come meanwhile. Not every
        // file system has them.
        let linked = match self.force {
            true => Err(io::ErrorKind::Unsupported.into()),
            false => fs::hard_link(&self.path, &self.target),
        };
        match &linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return linked.map(|()| false),
            Err(_) => fs::rename(&self.path, &self.target)?,
            Ok(()) => {}
        }
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(linked.is_err())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn exists(target: &Path) -> String {
    format!("{} is there already; --force writes over it", target.display())
}

/// Writes what is read through it.
pub(super) struct Tee<'a, R, W> {
    from: R,
    to: &'a mut W,
    failed: Option<io::Error>,
}

impl<'a, R, W: Write> Tee<'a, R, W> {
    pub(super) fn new(from: R, to: &'a mut W) -> Self {
        let failed = None;
        Self { from, to, failed }
    }

    /// Whether all of it was written.
    pub(super) fn written(self) -> io::Result<()> {
        match self.failed {
            Some(error) => Err(error),
            None => self.to.flush(),
        }
    }
}

impl<R: Read, W: Write> Read for Tee<'_, R, W> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(bytes)?;
        if let Err(error) = self.to.write_all(&bytes[..n]) {
            self.failed = Some(error);
            return Err(io::Error::other("what was read cannot be written"));
        }
        Ok(n)
    }
}
