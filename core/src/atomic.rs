//! Writes that happen whole or not at all.
//!
//! A file is written beside its target, flushed, synced, and renamed over it; a folder is built
//! beside its target and swapped in. Whatever goes wrong on the way (a writer's error, a full disk,
//! a panic, a kill), the target is what it was before. A kill may leave a hidden sibling named
//! `.NAME.tmp-...` behind, which nothing reads.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

/// A write that did not happen. The target is as it was before.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}: {source}; what was there before is untouched", .path.display())]
pub struct AtomicError {
    /// The target.
    pub path: PathBuf,
    /// What failed, e.g. `"write it"`.
    pub action: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Makes `bytes` the content of the file `path`.
///
/// # Errors
/// When the folder does not exist or cannot be written, or the disk is full.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), AtomicError> {
    write(path, |file| file.write_all(bytes))
}

/// Makes what `fill` writes the content of the file `path`. Writes are buffered; `fill` need not
/// flush. Wrap errors of other kinds in [`io::Error::other`].
///
/// # Errors
/// When `fill` fails, when the folder does not exist or cannot be written, or the disk is full.
pub fn write(
    path: &Path,
    fill: impl FnOnce(&mut (dyn Write + Send)) -> io::Result<()>,
) -> Result<(), AtomicError> {
    let error = |action| {
        move |source| AtomicError {
            path: path.to_owned(),
            action,
            source,
        }
    };
    let temporary = Temporary::beside(path).map_err(error("write it"))?;
    // Not `tempfile`: its files are readable by their owner only, and a rename keeps that.
    let file = File::create_new(&temporary.path).map_err(error("create a file beside it"))?;
    let mut writer = BufWriter::with_capacity(1 << 16, file);
    fill(&mut writer)
        .and_then(|()| writer.flush())
        .map_err(error("write it"))?;
    let file = writer
        .into_inner()
        .map_err(|e| error("write it")(e.into_error()))?;
    file.sync_all().map_err(error("sync it"))?;
    drop(file);
    fs::rename(&temporary.path, path).map_err(error("move the new file into place"))?;
    sync_folder(parent(path)).map_err(error("sync its folder"))
}

/// Makes the folder `path` what `fill` builds in the empty folder it is given, replacing an old
/// folder whole. On Linux the two are exchanged in one step; elsewhere, and on file systems that
/// cannot, the old one is moved aside first and moved back when the new one cannot take its place.
///
/// # Errors
/// What `fill` returns; an [`AtomicError`] when the folder cannot be created, synced or moved.
pub fn write_folder<E: From<AtomicError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let error = |action| {
        move |source| AtomicError {
            path: path.to_owned(),
            action,
            source,
        }
    };
    let temporary = Temporary::beside(path).map_err(error("write it"))?;
    fs::create_dir(&temporary.path).map_err(error("create a folder beside it"))?;
    fill(&temporary.path)?;
    sync_tree(&temporary.path).map_err(error("sync it"))?;
    put_in_place(&temporary.path, path).map_err(error("move the new folder into place"))?;
    sync_folder(parent(path)).map_err(error("sync its folder"))?;
    Ok(())
}

/// A sibling of the target that is removed when it goes out of scope: still there only when
/// something failed, or when it has become the old folder.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(target: &Path) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = target.file_name().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path does not end in a name",
            )
        })?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(
            ".tmp-{}-{}",
            process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        ));
        let path = parent(target).join(hidden);
        // The same process id and counter: the remains of a process that was killed.
        remove(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // The error that brought us here is the one to report.
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Afterwards `new` is at `path`, and what was at `path`, if anything, is at `new`.
fn put_in_place(new: &Path, path: &Path) -> io::Result<()> {
    if !path.try_exists()? {
        return fs::rename(new, path);
    }
    if exchange(new, path)? {
        return Ok(());
    }
    move_aside_and_in(new, path)
}

fn move_aside_and_in(new: &Path, path: &Path) -> io::Result<()> {
    let aside = Temporary::beside(path)?;
    fs::rename(path, &aside.path)?;
    match fs::rename(new, path) {
        // `aside` removes the old folder.
        Ok(()) => Ok(()),
        Err(error) => {
            fs::rename(&aside.path, path)?;
            Err(error)
        }
    }
}

/// Exchanges two paths in one step; false where that is not supported.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<bool> {
    use rustix::{
        fs::{CWD, RenameFlags, renameat_with},
        io::Errno,
    };
    match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Syncs every file and folder under `folder`, and `folder`.
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Makes a rename in `folder` survive a power cut. Only Unix can open a folder.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// What a full disk looks like: some bytes go through, then none.
    struct Full {
        left: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let n = bytes.len().min(self.left);
            self.left -= n;
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_bytes(&path, b"old and longer").unwrap();
        write(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_failing_writer_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_bytes(&path, b"old").unwrap();
        let error = write(&path, |w| {
            let mut disk = Full { left: 2 };
            w.write_all(b"half of the ne")?;
            disk.write_all(b"w file")
        })
        .unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("a.txt: cannot write it"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_panicking_writer_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_bytes(&path, b"old").unwrap();
        let result = std::panic::catch_unwind(|| write(&path, |_| panic!("in the writer")));
        assert!(result.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_missing_folder_and_a_path_without_a_name_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_bytes(&folder.path().join("no/a.txt"), b"x").is_err());
        assert!(write_bytes(Path::new("/"), b"x").is_err());
        assert!(write_bytes(folder.path(), b"x").is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_folder_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        for content in ["one", "two"] {
            write_folder::<AtomicError>(&path, |new| {
                fs::create_dir(new.join("deep")).unwrap();
                fs::write(new.join("deep").join(content), content).unwrap();
                Ok(())
            })
            .unwrap();
            assert_eq!(names(&path.join("deep")), [content]);
            assert_eq!(names(folder.path()), ["state"]);
        }
    }

    #[test]
    fn a_failing_builder_leaves_the_old_folder_and_nothing_else() {
        #[derive(Debug)]
        enum Mine {
            Full,
            #[expect(dead_code, reason = "only its being made from one matters")]
            Atomic(AtomicError),
        }
        impl From<AtomicError> for Mine {
            fn from(error: AtomicError) -> Self {
                Self::Atomic(error)
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write_folder::<AtomicError>(&path, |new| {
            fs::write(new.join("a"), "old").unwrap();
            Ok(())
        })
        .unwrap();
        let error = write_folder(&path, |new| {
            fs::write(new.join("a"), "half").unwrap();
            Err(Mine::Full)
        })
        .unwrap_err();
        assert!(matches!(error, Mine::Full));
        assert_eq!(fs::read(path.join("a")).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["state"]);
    }

    #[test]
    fn folders_are_replaced_where_no_exchange_is_possible() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::create_dir(&old).unwrap();
        assert!(
            move_aside_and_in(&new, &old).is_err(),
            "there is no new one"
        );
        assert_eq!(names(folder.path()), ["old"]);
        fs::create_dir(&new).unwrap();
        fs::write(new.join("a"), "new").unwrap();
        move_aside_and_in(&new, &old).unwrap();
        assert_eq!(names(folder.path()), ["old"]);
        assert_eq!(names(&old), ["a"]);
    }
}
