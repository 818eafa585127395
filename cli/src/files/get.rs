//! `hercules get`: files out of the cluster. A local file appears whole, or not at all.

use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use client::Client;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use wire::NamePath;
use wire::namespace::Attr;

use super::pieces::is_dash;
use super::view::hex;
use super::{FILES_AT_A_TIME, Pages};
use crate::cluster::{Cluster, parse_path};
use crate::exit::{Code, Failure};
use crate::output::Output;
use crate::{progress, size};

/// Download files; every byte is checked against the checksums made when it was written
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules get /data.bin
  hercules get --sha256 /data.bin copy.bin
  hercules get --offset 1M --length 64K /data.bin part.bin
  hercules get -r /backup/photos ./photos
  hercules get /backup.tar - | tar t")]
pub(crate) struct Get {
    /// Path in the cluster
    #[arg(value_name = "REMOTE", value_parser = parse_path)]
    remote: NamePath,
    /// Local file or directory, - for standard output [default: the same name, here]
    #[arg(value_name = "LOCAL")]
    local: Option<PathBuf>,
    /// Take a directory with everything in it
    #[arg(short, long, conflicts_with = "sha256")]
    recursive: bool,
    #[command(flatten)]
    part: Part,
    /// Compute SHA-256 on the way, and compare with the one kept with the file, if there is one
    #[arg(long)]
    sha256: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

/// Which bytes.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Part {
    /// First byte
    #[arg(long, value_parser = size::parse, default_value = "0")]
    offset: u64,
    /// Most bytes [default: to the end]
    #[arg(long, value_parser = size::parse)]
    length: Option<u64>,
}

impl Part {
    fn is_given(self) -> bool {
        self.offset > 0 || self.length.is_some()
    }

    /// The bytes of a file of `len` bytes that are meant.
    pub(super) fn of(self, len: u64) -> Result<Range<u64>, Failure> {
        if self.offset > len {
            return Err(Failure::new(Code::Usage, format!("offset {} is past the end at {len}", self.offset)));
        }
        let end = self.length.map_or(len, |length| self.offset.saturating_add(length).min(len));
        Ok(self.offset..end)
    }
}

#[derive(Serialize)]
struct Got<'a> {
    path: &'a str,
    local: String,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl Get {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// The first file that fails ends it; those before it stay.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let attr = client.stat(&self.remote).await?;
        if !attr.is_dir {
            return self.one(&client, &self.remote, &attr, self.target(&self.remote)).await;
        }
        if !self.recursive {
            return Err(Failure::new(Code::Usage, format!("{} is a directory", self.remote))
                .remedy("give -r to take it with everything in it"));
        }
        if self.part.is_given() {
            return Err(Failure::new(Code::Usage, "--offset and --length are for one file"));
        }
        self.tree(&client).await
    }

    fn target(&self, remote: &NamePath) -> PathBuf {
        match &self.local {
            Some(local) if !is_dash(local) && local.is_dir() => local.join(remote.name()),
            Some(local) => local.clone(),
            None => PathBuf::from(remote.name()),
        }
    }

    async fn tree(&self, client: &Client) -> Result<(), Failure> {
        // The root has no name of its own: its content goes where we are.
        let base = if self.remote.is_root() && self.local.is_none() { ".".into() } else { self.target(&self.remote) };
        if is_dash(&base) {
            return Err(Failure::new(Code::Usage, "a directory cannot go to standard output"));
        }
        tokio::fs::create_dir_all(&base).await?;
        let mut pages = Pages::new(client, &self.remote, true);
        while let Some(entries) = pages.next().await? {
            let mut files = Vec::new();
            for entry in entries {
                let path = NamePath::parse(&entry.path)?;
                let local = below(&base, &self.remote, &path)?;
                if entry.attr.is_dir {
                    tokio::fs::create_dir_all(&local).await?;
                } else {
                    files.push((path, local));
                }
            }
            let downloads = files.into_iter().map(|(path, local)| async move {
                let attr = client.stat(&path).await?;
                self.one(client, &path, &attr, local).await
            });
            stream::iter(downloads).buffer_unordered(FILES_AT_A_TIME).try_collect::<()>().await?;
        }
        Ok(())
    }

    async fn one(&self, client: &Client, remote: &NamePath, attr: &Attr, local: PathBuf) -> Result<(), Failure> {
        let range = self.part.of(attr.len)?;
        let whole = range == (0..attr.len);
        let length = range.end - range.start;
        let bar = if self.recursive { ProgressBar::hidden() } else { progress::bytes(Some(length), remote.name()) };
        let mut digest = self.sha256.then(Sha256::new);
        let got = if is_dash(&local) {
            copy(client, attr, range, &mut tokio::io::stdout(), &bar, digest.as_mut()).await
        } else {
            to_file(client, attr, range, &local, &bar, digest.as_mut(), attr.sha256.filter(|_| whole)).await
        };
        bar.finish_and_clear();
        got.map_err(|failure| failure.context(format!("get {remote}")))?;
        if is_dash(&local) {
            return Ok(());
        }
        let sha256 = digest.map(|digest| hex(&digest.finalize()));
        let text = format!("{}  {length} bytes", local.display());
        let got = Got { path: remote.as_str(), local: local.display().to_string(), length, sha256 };
        self.output.print(&got, text)
    }
}

/// Streams a range to `out`, and into a digest when there is one.
pub(super) async fn copy(
    client: &Client,
    attr: &Attr,
    range: Range<u64>,
    out: &mut (impl AsyncWrite + Unpin),
    bar: &ProgressBar,
    mut digest: Option<&mut Sha256>,
) -> Result<(), Failure> {
    let want = range.end - range.start;
    let mut got = 0;
    let mut stream = client.read(attr, range);
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        if let Some(digest) = digest.as_deref_mut() {
            digest.update(&piece);
        }
        out.write_all(&piece).await?;
        got += piece.len() as u64;
        bar.set_position(got);
    }
    out.flush().await?;
    if got == want {
        return Ok(());
    }
    Err(Failure::new(Code::Failed, format!("{got} bytes came instead of {want}")).remedy("repeat"))
}

/// Writes beside the target, then renames: a failed download leaves what was there before.
async fn to_file(
    client: &Client,
    attr: &Attr,
    range: Range<u64>,
    local: &Path,
    bar: &ProgressBar,
    mut digest: Option<&mut Sha256>,
    want: Option<[u8; 32]>,
) -> Result<(), Failure> {
    let named = |error: std::io::Error| Failure::from(error).context(local.display());
    let Some(name) = local.file_name() else {
        return Err(Failure::new(Code::Usage, format!("{} is not a file name", local.display())));
    };
    let beside = local.with_file_name(format!(".{}.part-{}", name.to_string_lossy(), std::process::id()));
    let scratch = Scratch(&beside);
    let mut file = tokio::fs::File::create(&beside).await.map_err(named)?;
    copy(client, attr, range, &mut file, bar, digest.as_deref_mut()).await?;
    if let (Some(digest), Some(want)) = (digest, want) {
        let have = digest.clone().finalize();
        if have.as_slice() != want {
            return Err(Failure::new(Code::Failed, format!("SHA-256 is {}, kept is {}", hex(&have), hex(&want)))
                .remedy("`hercules stat --chunks` compares the replicas"));
        }
    }
    tokio::fs::rename(&beside, local).await.map_err(named)?;
    std::mem::forget(scratch);
    Ok(())
}

/// Removes an unfinished file.
struct Scratch<'a>(&'a Path);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

/// Where a file below `root` goes below `base`. Names from the cluster have no `..`: they were parsed.
fn below(base: &Path, root: &NamePath, path: &NamePath) -> Result<PathBuf, Failure> {
    if !path.is_within(root) {
        return Err(Failure::new(Code::Failed, format!("{path} came in the listing of {root}")));
    }
    Ok(path.segments().skip(root.segments().count()).fold(base.to_path_buf(), |local, name| local.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_cut_at_the_end_and_refused_beyond_it() {
        let part = |offset, length| Part { offset, length }.of(100).ok();
        assert_eq!(part(0, None), Some(0..100));
        assert_eq!(part(10, Some(20)), Some(10..30));
        assert_eq!(part(90, Some(20)), Some(90..100));
        assert_eq!(part(100, Some(u64::MAX)), Some(100..100));
        assert_eq!(part(101, None), None);
    }

    #[test]
    fn a_tree_lands_below_its_target_and_nowhere_else() {
        let path = |text: &str| NamePath::parse(text).unwrap();
        let local = |root: &str, file: &str| below(Path::new("out"), &path(root), &path(file)).ok();
        assert_eq!(local("/a", "/a/b/c"), Some("out/b/c".into()));
        assert_eq!(local("/", "/a"), Some("out/a".into()));
        assert_eq!(local("/a", "/b/c"), None);
    }
}
