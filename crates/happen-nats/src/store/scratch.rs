//! Folders for what this process needs only while it runs. Owns which of them are still wanted, and takes away those of
//! processes that were killed; does not know what is in them.

#[cfg(unix)]
use std::fs::TryLockError;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use happen_core::{Error, ErrorKind, Result};
use tempfile::TempDir;

/// What the names of these folders begin with; letters and digits by chance follow, so many that nobody else has chosen
/// such a name.
const NAMED: &str = "happen-log-";
const NAMED_BY_CHANCE: usize = 16;

/// A folder that goes when this does, or with the next [`remove_deserted`] on this machine if the process is killed.
pub(crate) struct Scratch {
    /// The lock on the folder, which the system lets go of however the process ends. Before the folder, for not every
    /// system removes one that is open.
    _held: Option<File>,
    folder: TempDir,
}

impl Scratch {
    /// A new one where the system has its temporary files.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(crate) fn new() -> Result<Self> {
        Self::new_in(&std::env::temp_dir())
    }

    fn new_in(place: &Path) -> Result<Self> {
        let failed = |error| {
            let what = format!("make a folder for a copy of the log in {}", place.display());
            Error::new(ErrorKind::Io { what }).with_source(error)
        };
        loop {
            let folder = named().tempdir_in(place).map_err(failed)?;
            match hold(folder.path()) {
                Ok(held) => return Ok(Self { _held: held, folder }),
                // Somebody took it for deserted before it was held.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

fn named() -> tempfile::Builder<'static, 'static> {
    let mut named = tempfile::Builder::new();
    named.prefix(NAMED).rand_bytes(NAMED_BY_CHANCE);
    named
}

fn is_named_so(name: &[u8]) -> bool {
    let by_chance = name.strip_prefix(NAMED.as_bytes());
    by_chance.is_some_and(|rest| rest.len() == NAMED_BY_CHANCE && rest.iter().all(u8::is_ascii_alphanumeric))
}

/// Removes the folders of processes that were killed.
pub(crate) fn remove_deserted() {
    remove_deserted_in(&std::env::temp_dir());
}

/// Removes the folders that nobody holds. What cannot be looked at or removed is somebody else's, or goes at this moment.
fn remove_deserted_in(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        // A link by such a name is not followed.
        if !is_named_so(entry.file_name().as_encoded_bytes())
            || !entry.file_type().is_ok_and(|kind| kind.is_dir())
        {
            continue;
        }
        if let Ok(Some(_held)) = hold(&entry.path())
            && fs::remove_dir_all(entry.path()).is_ok()
        {
            let folder = entry.path();
            tracing::info!(target: "happen", "removed {}, left by a process that was killed", folder.display());
        }
    }
}

/// Takes the lock on a folder; none where folders have no locks, as on some network file systems: one of a killed process
/// stays there. Those who clean temporary folders by age leave one alone that is locked.
#[cfg(unix)]
fn hold(folder: &Path) -> io::Result<Option<File>> {
    let held = File::open(folder)?;
    match held.try_lock() {
        Ok(()) => {}
        Err(busy @ TryLockError::WouldBlock) => return Err(busy.into()),
        Err(TryLockError::Error(_)) => return Ok(None),
    }
    // Between opening and locking, whoever removed it may have let go of it.
    fs::metadata(folder)?;
    Ok(Some(held))
}

/// A folder cannot be locked here, so that one of a killed process stays.
#[cfg(not(unix))]
fn hold(_: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(place: &Path) -> Vec<String> {
        let names =
            fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// A folder as a killed process leaves it.
    fn deserted(place: &Path) -> String {
        let scratch = Scratch::new_in(place).unwrap();
        fs::write(scratch.path().join("happen.db"), [0; 100]).unwrap();
        let Scratch { folder, _held: held } = scratch;
        drop(held);
        folder.keep().file_name().unwrap().to_str().unwrap().to_owned()
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_of_a_killed_process_goes_and_one_in_use_stays() {
        let place = tempfile::tempdir().unwrap();
        let left = deserted(place.path());
        assert_eq!(names(place.path()), [left]);

        let first = Scratch::new_in(place.path()).unwrap();
        fs::write(first.path().join("happen.db"), [0; 100]).unwrap();
        let second = Scratch::new_in(place.path()).unwrap();
        remove_deserted_in(place.path());
        let mut both =
            [&first, &second].map(|one| one.path().file_name().unwrap().to_str().unwrap().to_owned());
        both.sort();
        assert_eq!(names(place.path()), both);
        assert_eq!(fs::read(first.path().join("happen.db")).unwrap().len(), 100);

        drop((first, second));
        assert!(names(place.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_ours_stays() {
        let place = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("kept"), []).unwrap();
        let others = ["happen-log-", "happen-log-archive", "happen-log-of-November-2026", "happen-logs"];
        for name in others {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        let [file, link] = ["f", "l"].map(|letter| format!("{NAMED}{}", letter.repeat(NAMED_BY_CHANCE)));
        fs::write(place.path().join(&file), []).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), place.path().join(&link)).unwrap();

        remove_deserted_in(place.path());
        let mut stay = [&others.map(str::to_owned)[..], &[file, link]].concat();
        stay.sort();
        assert_eq!(names(place.path()), stay);
        assert!(elsewhere.path().join("kept").exists());
    }

    #[test]
    fn many_at_once_each_get_one_of_their_own() {
        let place = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        remove_deserted_in(place.path());
                        let scratch = Scratch::new_in(place.path()).unwrap();
                        let file = scratch.path().join("own");
                        fs::write(&file, []).unwrap();
                        assert!(file.exists());
                    }
                });
            }
        });
        assert!(names(place.path()).is_empty());
    }

    #[test]
    fn a_place_that_is_not_there_is_named() {
        let error = Scratch::new_in(Path::new("/nowhere/at/all")).map(drop).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
