//! Small disks for the tests of what happens when one is full or loses its power. Owns the file systems and how they are
//! taken away again; does not know what is written.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "what is missing fails the test that asks for it"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A place for what a server keeps.
pub trait TestDisk {
    /// The folder, as whoever is started by [`TestDisk::starter`] sees it.
    fn folder(&self) -> PathBuf;

    /// What a program that uses the disk has to be started by, with its arguments. Nothing if anybody sees the disk.
    fn starter(&self) -> Vec<String>;
}

/// A file system in memory of a fixed size, in a place that only this process and those that it starts can see. It needs
/// no rights on the machine but that to make such places, which most systems give to everybody.
#[derive(Debug)]
pub struct SmallDisk {
    folder: tempfile::TempDir,
    /// The place is there as long as this process is.
    holder: Child,
}

impl SmallDisk {
    /// Makes one of so many bytes.
    ///
    /// # Errors
    ///
    /// When the machine does not let this user do so; the text says what the system said.
    pub fn new(bytes: u64) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let held = "mount -t tmpfs -o size=$1 none \"$2\" && echo here && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", held, "sh", &bytes.to_string()])
            .arg(folder.path())
            // Ends when this process does, whatever becomes of it.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("`unshare` does not start: {error}"))?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.trim() == "here" {
            return Ok(Self { folder, holder });
        }
        let mut told = String::new();
        holder.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        holder.wait().unwrap();
        Err(format!("no file system of its own: {}", told.trim()))
    }

    /// Writes until there is no room left.
    pub fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).expect("the filler can be made");
        while filler.write_all(&[0; 4_096]).is_ok() {}
        // The rest of the last page.
        while filler.write_all(&[0]).is_ok() {}
    }

    /// Gives the room back that [`SmallDisk::fill`] took.
    pub fn make_room(&self) {
        fs::remove_file(self.filler()).expect("the filler is there");
    }

    /// The filler, as this process sees it.
    fn filler(&self) -> PathBuf {
        let seen = format!("/proc/{}/root", self.holder.id());
        let below = self.folder.path().strip_prefix("/").expect("temporary folders have whole paths");
        Path::new(&seen).join(below).join("filler")
    }
}

impl TestDisk for SmallDisk {
    fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    fn starter(&self) -> Vec<String> {
        let of = self.holder.id().to_string();
        ["nsenter", "--target", &of, "--user", "--mount", "--preserve-credentials"]
            .map(str::to_owned)
            .to_vec()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// A file system in a file, which can be copied as it is at one moment: what a disk has after a loss of power. Needs the
/// rights of root.
#[derive(Debug)]
pub struct ImageDisk {
    image: PathBuf,
    mounted: PathBuf,
    _temporary: tempfile::TempDir,
}

impl ImageDisk {
    /// Makes one of so many bytes.
    ///
    /// # Errors
    ///
    /// When the machine does not let this user do so; the text says what the system said.
    pub fn new(bytes: u64) -> Result<Self, String> {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let image = temporary.path().join("image");
        fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("the image can be made");
        run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        Self::mount(temporary, image)
    }

    fn mount(temporary: tempfile::TempDir, image: PathBuf) -> Result<Self, String> {
        let mounted = temporary.path().join("mounted");
        fs::create_dir(&mounted).expect("a folder to mount on");
        // Nothing is written because time has passed: all that is on the disk was asked to be there.
        run(Command::new("mount").args(["-o", "loop,commit=300"]).arg(&image).arg(&mounted))?;
        Ok(Self { image, mounted, _temporary: temporary })
    }

    /// The disk as it is after a loss of power at this moment: what was written to it, without what the system still
    /// has in memory. Those who write have to stand still meanwhile.
    ///
    /// # Errors
    ///
    /// As [`ImageDisk::new`].
    pub fn after_loss_of_power(&self) -> Result<Self, String> {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let copy = temporary.path().join("image");
        let mut before = fs::read(&self.image).expect("the image can be read");
        // What changes while it is read is no state that the disk ever had.
        loop {
            let again = fs::read(&self.image).expect("the image can be read");
            if again == before {
                break;
            }
            before = again;
        }
        fs::write(&copy, before).expect("the copy can be written");
        Self::mount(temporary, copy)
    }
}

impl TestDisk for ImageDisk {
    fn folder(&self) -> PathBuf {
        self.mounted.clone()
    }

    fn starter(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Drop for ImageDisk {
    fn drop(&mut self) {
        // Lazily: a server that used it may not have ended yet.
        if let Err(why) = run(Command::new("umount").arg("--lazy").arg(&self.mounted)) {
            eprintln!("{} stays mounted: {why}", self.mounted.display());
        }
    }
}

/// How many pages the system has in memory only of the files in a folder and those below whose names end like this: a loss
/// of power loses them. It needs no rights, Linux 6.5 or later, and Python.
///
/// # Errors
///
/// When the system does not tell; the text says why.
pub fn unwritten_pages(folder: &Path, ending: &str) -> Result<u64, String> {
    let told = run(Command::new("python3").arg("-c").arg(LOOK).arg(folder).arg(ending))?;
    told.trim().parse().map_err(|error| format!("`{told}` is no number of pages: {error}"))
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?} does not start: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Asks the system call `cachestat` about each file.
const LOOK: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Range(ctypes.Structure):
    _fields_ = [("off", ctypes.c_uint64), ("len", ctypes.c_uint64)]
class Stat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently")]
pages = 0
for folder, _, files in os.walk(sys.argv[1]):
    for file in (file for file in files if file.endswith(sys.argv[2])):
        try:
            opened = os.open(os.path.join(folder, file), os.O_RDONLY)
        except FileNotFoundError:
            continue
        stat = Stat()
        failed = libc.syscall(451, opened, ctypes.byref(Range()), ctypes.byref(stat), 0)
        os.close(opened)
        if failed:
            sys.exit("cachestat: " + os.strerror(ctypes.get_errno()))
        pages += stat.dirty + stat.writeback
print(pages)
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_synced_is_in_memory_only() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut file = fs::File::create(folder.path().join("file")).unwrap();
        file.write_all(&[1; 100_000]).unwrap();
        assert!(unwritten_pages(folder.path(), "").unwrap() >= 24);
        file.sync_all().unwrap();
        assert_eq!(unwritten_pages(folder.path(), ""), Ok(0));
    }
}
