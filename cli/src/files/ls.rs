//! `hercules ls`: names, page by page, so that a directory of a million entries starts to print at once.

use benches::report::size;
use clap::Args;
use client::Client;
use wire::NamePath;
use wire::limits::PAGE_ENTRIES_MAX;
use wire::namespace::{Attr, Entry};

use super::view::View;
use super::{Pages, with_tail};
use crate::cluster::{Cluster, parse_path};
use crate::exit::Failure;
use crate::output::{Output, date, line};

/// List a directory, in order of names
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules ls
  hercules ls -l /logs
  hercules ls -r --json / | jq -r .path
  hercules ls --trash")]
pub(crate) struct Ls {
    /// Path in the cluster
    #[arg(value_name = "REMOTE", default_value = "/", value_parser = parse_path)]
    remote: NamePath,
    /// Show length and time of change
    #[arg(short, long)]
    long: bool,
    /// The whole tree below
    #[arg(short, long)]
    recursive: bool,
    /// What was deleted and can be brought back, oldest first
    #[arg(long, conflicts_with = "recursive")]
    trash: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

impl Ls {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the cluster says; pages before it are printed.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        if self.trash {
            return self.trash(&client).await;
        }
        let attr = client.stat(&self.remote).await?;
        if !attr.is_dir {
            return self.show(self.remote.as_str(), &attr, self.remote.as_str());
        }
        let mut pages = Pages::new(&client, &self.remote, self.recursive);
        while let Some(entries) = pages.next().await? {
            for entry in &entries {
                self.show(&entry.path, &entry.attr, self.name(entry))?;
            }
        }
        Ok(())
    }

    async fn trash(&self, client: &Client) -> Result<(), Failure> {
        let mut after = Some(String::new());
        while let Some(from) = after.take() {
            let page = client.trash(&from, PAGE_ENTRIES_MAX).await?;
            for entry in page.entries.into_iter().map(with_tail) {
                if NamePath::parse(&entry.path).is_ok_and(|path| path.is_within(&self.remote)) {
                    self.show(&entry.path, &entry.attr, &entry.path)?;
                }
            }
            after = page.next;
        }
        Ok(())
    }

    /// How an entry is called in the listing: its name, or in a tree its path from where we look.
    fn name<'a>(&self, entry: &'a Entry) -> &'a str {
        let below = entry.path.strip_prefix(self.remote.as_str()).unwrap_or(&entry.path);
        below.trim_start_matches('/')
    }

    fn show(&self, path: &str, attr: &Attr, name: &str) -> Result<(), Failure> {
        if self.output.json {
            return self.output.print(&View::new(path, attr), "");
        }
        line(row(attr, name, self.long))
    }
}

fn row(attr: &Attr, name: &str, long: bool) -> String {
    let slash = if attr.is_dir { "/" } else { "" };
    if !long {
        return format!("{name}{slash}");
    }
    let len = if attr.is_dir { "-".into() } else { size(attr.len) };
    format!("{len:>12}  {:20}  {name}{slash}", date(attr.modified_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_end_in_a_slash_and_have_no_length() {
        let file = super::super::view::tests::attr();
        let directory = Attr { is_dir: true, ..file.clone() };
        assert_eq!(row(&file, "a", false), "a");
        assert_eq!(row(&directory, "d", false), "d/");
        assert_eq!(row(&file, "a", true), "     1.5 KiB  2023-11-14T22:13:21Z  a");
        assert_eq!(row(&directory, "d", true), "           -  2023-11-14T22:13:21Z  d/");
    }
}
