//! `hercules put`: local files into the cluster, each visible at once or not at all.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use client::{Client, UploadOptions};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use wire::NamePath;
use wire::namespace::Attr;
use wire::upload::Precondition;

use super::pieces::{Pieces, is_dash};
use super::view::View;
use super::{FILES_AT_A_TIME, Target, join, local_name, parse_target};
use crate::cluster::Cluster;
use crate::exit::{Code, Failure};
use crate::output::Output;
use crate::progress;

/// Upload files; each becomes visible whole, when it is durable on every replica
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules put data.bin /data.bin
  hercules put --sha256 *.log /logs/
  hercules put -r ./photos /backup
  tar c . | hercules put - /backup.tar")]
pub(crate) struct Put {
    /// Local files; - is standard input
    #[arg(required = true, value_name = "LOCAL")]
    local: Vec<PathBuf>,
    /// Path in the cluster; a trailing slash means a directory
    #[arg(value_name = "REMOTE", value_parser = parse_target)]
    remote: Target,
    /// Take directories with everything in them
    #[arg(short, long)]
    recursive: bool,
    /// Compute SHA-256 on the way, and keep it with the file
    #[arg(long)]
    sha256: bool,
    /// Content type kept with the file
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TYPE")]
    content_type: String,
    /// Refuse to replace a file that is there
    #[arg(long)]
    no_replace: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

/// What is to be done, in order.
#[derive(Debug, PartialEq, Eq)]
enum Job {
    Directory(NamePath),
    File { local: PathBuf, remote: NamePath },
}

impl Put {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// The first file that fails ends it; those before it stay.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let (jobs, skipped) = self.plan(&client).await?;
        for path in &skipped {
            eprintln!("hercules: {} is skipped: neither a file nor a directory", path.display());
        }
        let mut files = Vec::new();
        for job in jobs {
            match job {
                Job::Directory(path) => client.mkdir(&path).await.map(drop)?,
                Job::File { local, remote } => files.push((local, remote)),
            }
        }
        let one = files.len() == 1;
        let uploads = files.into_iter().map(|(local, remote)| {
            let (client, this) = (&client, &self);
            async move {
                let attr = this.upload(client, &local, &remote, one).await;
                let attr = attr.map_err(|failure| failure.context(format!("put {remote}")))?;
                let view = View::new(remote.as_str(), &attr);
                this.output.print(&view, format!("{remote}  {} bytes", attr.len))
            }
        });
        stream::iter(uploads).buffer_unordered(FILES_AT_A_TIME).try_collect::<()>().await
    }

    async fn plan(&self, client: &Client) -> Result<(Vec<Job>, Vec<PathBuf>), Failure> {
        let into = self.local.len() > 1 || self.remote.is_directory(client).await?;
        let mut jobs = Vec::new();
        let mut skipped = Vec::new();
        for local in &self.local {
            let remote = match (into, is_dash(local)) {
                (true, true) => {
                    return Err(Failure::new(Code::Usage, "standard input has no name")
                        .remedy(format!("name the file: {}/NAME", self.remote.path)));
                }
                (true, false) => join(&self.remote.path, local_name(local)?)?,
                (false, _) => self.remote.path.clone(),
            };
            if self.recursive && local.is_dir() {
                walk(local, remote, &mut jobs, &mut skipped)?;
            } else {
                jobs.push(Job::File { local: local.clone(), remote });
            }
        }
        Ok((jobs, skipped))
    }

    async fn upload(&self, client: &Client, local: &Path, remote: &NamePath, bar: bool) -> Result<Attr, Failure> {
        let mut pieces = Pieces::open(local, true)?;
        let bar = if bar { progress::bytes(pieces.len, remote.name()) } else { ProgressBar::hidden() };
        let options = UploadOptions {
            content_type: self.content_type.clone(),
            precondition: if self.no_replace { Precondition::Absent } else { Precondition::None },
            sha256: self.sha256,
        };
        let mut upload = client.upload(remote, options).await?;
        let sent = async {
            while let Some(piece) = pieces.next().await? {
                upload.write(piece).await?;
                bar.set_position(upload.durable());
            }
            Ok::<_, Failure>(())
        };
        let done = match sent.await {
            Ok(()) => upload.finish().await.map_err(Failure::from),
            Err(failure) => {
                upload.abort().await;
                Err(failure)
            }
        };
        bar.finish_and_clear();
        done
    }
}

/// Everything below a local directory, parents before children, in order of names. Links to
/// directories are not followed: they may lead round in circles.
fn walk(local: &Path, remote: NamePath, jobs: &mut Vec<Job>, skipped: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let mut folders = VecDeque::from([(local.to_path_buf(), remote)]);
    while let Some((local, remote)) = folders.pop_front() {
        let named = |error: std::io::Error| Failure::from(error).context(local.display());
        let mut entries: Vec<_> = fs::read_dir(&local).map_err(named)?.collect::<Result<_, _>>().map_err(named)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        jobs.push(Job::Directory(remote.clone()));
        for entry in entries {
            let path = entry.path();
            let own = entry.file_type().map_err(named)?;
            let remote = join(&remote, local_name(&path)?)?;
            if own.is_dir() {
                folders.push_back((path, remote));
            } else if fs::metadata(&path).is_ok_and(|target| target.is_file()) {
                jobs.push(Job::File { local: path, remote });
            } else {
                skipped.push(path);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_walked_parents_first_and_links_to_directories_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("b/c")).unwrap();
        fs::write(root.join("b/c/file"), "x").unwrap();
        fs::write(root.join("a"), "x").unwrap();
        std::os::unix::fs::symlink(root, root.join("loop")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("link")).unwrap();
        std::os::unix::fs::symlink(root.join("gone"), root.join("dangling")).unwrap();

        let path = |text: &str| NamePath::parse(text).unwrap();
        let file = |local: &str, remote: &str| Job::File { local: root.join(local), remote: path(remote) };
        let (mut jobs, mut skipped) = (Vec::new(), Vec::new());
        walk(root, path("/t"), &mut jobs, &mut skipped).unwrap();
        assert_eq!(
            jobs,
            [
                Job::Directory(path("/t")),
                file("a", "/t/a"),
                file("link", "/t/link"),
                Job::Directory(path("/t/b")),
                Job::Directory(path("/t/b/c")),
                file("b/c/file", "/t/b/c/file"),
            ]
        );
        assert_eq!(skipped, [root.join("dangling"), root.join("loop")]);
    }
}
