//! The file of the cluster key: how every process is given it, and `hercules key`, which makes one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use wire::ClusterKey;
use wire::key::{KEY_FILE_LEN_MAX, to_text};

use crate::exit::{Code, Failure};
use crate::output;

/// Readable by the owner alone.
const MODE: u32 = 0o600;

/// Permissions of everybody else: a key that has them is no secret on this machine.
const OTHERS: u32 = 0o007;

/// The secret of the cluster.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct KeyFile {
    /// File with the key that all processes of the cluster share; `hercules key` makes one. Without it only a
    /// cluster without a key is spoken to
    #[arg(long = "cluster-key-file", env = "HERCULES_CLUSTER_KEY_FILE", value_name = "FILE", help_heading = "Cluster")]
    file: Option<PathBuf>,
}

impl KeyFile {
    /// This file.
    pub(crate) fn at(file: PathBuf) -> Self {
        Self { file: Some(file) }
    }

    /// Where it is; an empty name is none.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.file.as_deref().filter(|file| !file.as_os_str().is_empty())
    }

    /// Reads the key, if one is given. Permissions that let others read it are warned about.
    ///
    /// # Errors
    ///
    /// [`Code::Config`] when there is no key in the file.
    pub(crate) fn read(&self) -> Result<Option<ClusterKey>, Failure> {
        let Some(path) = self.path() else { return Ok(None) };
        let refused = |cause: &dyn std::fmt::Display| {
            Failure::new(Code::Config, format!("no cluster key in {}: {cause}", path.display())).remedy(
                "give the file that the other processes have by --cluster-key-file or HERCULES_CLUSTER_KEY_FILE; \
                 for a new cluster `hercules key FILE` makes one",
            )
        };
        let (content, mode) = read(path).map_err(|error| refused(&error))?;
        if mode & OTHERS != 0 {
            let file = path.display();
            let mode = format!("{:o}", mode & 0o777);
            tracing::warn!(%file, mode, "everybody on this machine may use the cluster key: chmod 600 it");
        }
        ClusterKey::parse(&content).map(Some).map_err(|error| refused(&error))
    }
}

/// The content of a file, no more of it than could be a key, and its mode.
fn read(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut content = Vec::new();
    file.take(KEY_FILE_LEN_MAX as u64 + 1).read_to_end(&mut content)?;
    Ok((content, mode))
}

/// Make a key for a cluster: 32 random bytes as text, in a file that only its owner can read
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules key /etc/hercules/cluster.key
  HERCULES_CLUSTER_KEY_FILE=/etc/hercules/cluster.key hercules master
  hercules key --keep /keys/cluster.key        for scripts: a file that is there is left as it is")]
pub(crate) struct Key {
    /// Where to put it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Leave a key that is there as it is, instead of failing
    #[arg(long)]
    keep: bool,
}

impl Key {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// When the file exists, or cannot be written.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let made = make(&self.file)?;
        if !made && !self.keep {
            return Err(Failure::new(Code::Failed, format!("{} exists", self.file.display())).remedy(
                "processes may use it: choose another name, or remove it once none does; --keep is content with it",
            ));
        }
        // What is kept must be one.
        KeyFile::at(self.file.clone()).read()?;
        let what = if made { "new cluster key in" } else { "the cluster key stays as it is in" };
        output::line(format!("{what} {}", self.file.display()))
    }
}

/// Makes a key unless the file is there; whether it did. The file appears whole or not at all.
///
/// # Errors
///
/// [`Code::Config`] when the folder cannot be written.
pub(crate) fn make(path: &Path) -> Result<bool, Failure> {
    let refused = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Config, format!("cannot make a cluster key in {}: {error}", path.display()))
            .remedy("choose a file in a folder that this user may write to")
    };
    if path.exists() {
        return Ok(false);
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| refused(&error))?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(name);
    let written = write(&new, to_text(&random).as_bytes()).and_then(|()| fs::hard_link(&new, path));
    let _ = fs::remove_file(&new);
    match written {
        Ok(()) => Ok(true),
        // Somebody else was faster: theirs it is.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.exists() => Ok(false),
        Err(error) => Err(refused(&error)),
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(MODE).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        assert!(make(&path).unwrap());
        let content = fs::read(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!make(&path).unwrap(), "it is there");
        assert_eq!(fs::read(&path).unwrap(), content);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(KeyFile::at(path.clone()).read().unwrap().is_some());
        assert_eq!(Key { file: path.clone(), keep: false }.run().unwrap_err().code, Code::Failed as u8);
        Key { file: path, keep: true }.run().unwrap();
    }

    #[test]
    fn a_file_without_a_key_is_an_error_that_names_the_flag() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [("short", &b"abcd"[..]), ("long", &[7; KEY_FILE_LEN_MAX + 1]), ("text", &[b'x'; 43])] {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            let failure = KeyFile::at(path).read().unwrap_err();
            assert_eq!(failure.code, Code::Config as u8, "{name}");
            assert!(failure.to_string().contains("--cluster-key-file"), "{failure}");
        }
        assert_eq!(KeyFile::at(dir.path().join("absent")).read().unwrap_err().code, Code::Config as u8);
        assert!(KeyFile::at(PathBuf::new()).read().unwrap().is_none(), "an empty name is none");
        assert!(KeyFile::default().read().unwrap().is_none());
    }
}
