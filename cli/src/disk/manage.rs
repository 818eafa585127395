//! `hercules disk`: what an operator does with a disk as a whole.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use engine::store::rebuild::{self, Evidence, RebuildOptions, Rebuilt};
use engine::store::{in_use, inspect};
use serde_json::{Value, json};
use wire::{ClusterId, ServerId};

use super::{must_exist, parse_cluster};
use crate::exit::{Code, Failure};
use crate::output::{Output, date, table};

/// Show, retire or rebuild the disk of a chunkserver
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules disk status --data-dir /data/chunks
  hercules disk retire --data-dir /data/chunks --yes
  hercules disk rebuild --data-dir /data/chunks --cluster 0123456789abcdef0123456789abcdef")]
pub(crate) struct Disk {
    #[command(subcommand)]
    command: DiskCommand,
}

/// What to do with it.
#[derive(Debug, Subcommand)]
enum DiskCommand {
    Status(Status),
    Retire(Retire),
    Rebuild(Rebuild),
}

/// Show whose disk it is, its state, and whether a server uses it
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules disk status --data-dir /data/chunks
  hercules disk status --data-dir /data/chunks --json | jq -r .state

States: NORMAL; FENCED after a disk error, verified in full by the next start; DRAINING after a second error within a
day, takes no new chunks; RETIRED, no server starts on it.")]
struct Status {
    /// Folder of the disk
    #[arg(long, env = "HERCULES_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Mark a disk so that no server starts on it again
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules disk retire --data-dir /data/chunks             says what it would do
  hercules disk retire --data-dir /data/chunks --yes
  hercules disk retire --data-dir /data/chunks --undo --yes

The server must be stopped. Chunks on the disk stay, and count as lost until the master has made new replicas.
After --undo the next start verifies everything that the journals hold.")]
struct Retire {
    /// Folder of the disk
    #[arg(long, env = "HERCULES_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Put a retired disk back into use
    #[arg(long)]
    undo: bool,
    /// Do it
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

/// Make DISK anew when both of its copies are bad, from journals and slots
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules disk rebuild --data-dir /data/chunks --cluster 0123456789abcdef0123456789abcdef
  hercules disk rebuild --data-dir /data/chunks --cluster 0123456789abcdef0123456789abcdef --server 3 --yes

Without --yes it shows what it found and changes nothing. `hercules status` shows the cluster's id and the servers'
numbers. The server must be stopped. What contradicts itself is refused: files of two disks, a missing journal, a
server that the chunks do not name. The next start then verifies everything that the journals hold.")]
struct Rebuild {
    /// Folder of the disk
    #[arg(long, env = "HERCULES_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// The cluster it belongs to, as `hercules status` shows it
    #[arg(long, value_parser = parse_cluster, value_name = "ID")]
    cluster: ClusterId,
    /// The server it belongs to [default: as the chunks say]
    #[arg(long, value_name = "N")]
    server: Option<u32>,
    /// Write DISK
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

impl Disk {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// Why it was refused, or failed; what was not said to be done was not done.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self.command {
            DiskCommand::Status(command) => command.run(),
            DiskCommand::Retire(command) => command.run(),
            DiskCommand::Rebuild(command) => command.run(),
        }
    }
}

/// What DISK says, as it lies; empty where it cannot be read.
struct Said(inspect::Overview);

impl Said {
    fn of(root: &Path) -> Result<Self, Failure> {
        must_exist(root)?;
        Ok(Self(inspect::overview(root)?))
    }

    fn field(&self, name: &str) -> Option<&inspect::Shown> {
        self.0.disk[self.0.current?].fields.iter().find(|field| field.name == name)
    }

    fn text(&self, name: &str) -> String {
        self.field(name).map(|field| field.value.clone()).unwrap_or_default()
    }

    /// NORMAL, FENCED, DRAINING or RETIRED.
    fn state(&self) -> String {
        self.text("state").split(' ').next_back().unwrap_or_default().to_owned()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.number
    }
}

impl Status {
    fn run(self) -> Result<(), Failure> {
        let said = Said::of(&self.data_dir)?;
        if said.0.current.is_none() {
            let what = format!("{}: both copies of DISK are bad", self.data_dir.display());
            let remedy = "`hercules disk rebuild` makes DISK anew; `hercules inspect` shows what is there";
            return Err(Failure::new(Code::Failed, what).remedy(remedy));
        }
        let used = in_use(&self.data_dir)?;
        let value = json!({
            "disk": self.data_dir.display().to_string(),
            "state": said.state(),
            "in_use": used,
            "cluster": said.text("cluster_uuid"),
            "server": said.number("server_id"),
            "disk_uuid": said.text("disk_uuid"),
            "boot_gen": said.number("boot_gen"),
            "rings": said.number("rings"),
            "slots": said.number("slots"),
            "eio_count": said.number("eio_count"),
            "eio_last": said.number("eio_last"),
        });
        self.output.print(&value, status_text(&said, used))
    }
}

fn status_text(said: &Said, used: bool) -> String {
    let errors = match (said.number("eio_count"), said.number("eio_last")) {
        (Some(count), Some(last)) if count > 0 => format!("{count}, the last before {}", date(last * 1000)),
        _ => "none".into(),
    };
    let rows = [
        ("state", said.state()),
        ("in use", if used { "yes, by a running process" } else { "no" }.into()),
        ("cluster", said.text("cluster_uuid")),
        ("server", said.text("server_id")),
        ("disk", said.text("disk_uuid")),
        ("boots", said.text("boot_gen")),
        ("slots", said.text("slots")),
        ("disk errors", errors),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    table(&rows, &[])
}

impl Retire {
    fn run(self) -> Result<(), Failure> {
        let before = Said::of(&self.data_dir)?.state();
        let (after, done) = if self.undo { ("FENCED", "is back in use") } else { ("RETIRED", "is retired") };
        let shown = self.data_dir.display();
        let value = json!({ "disk": shown.to_string(), "from": before, "to": after, "done": self.yes });
        if !self.yes {
            return self.output.print(&value, format!("{shown}: {before} would become {after}; --yes does it"));
        }
        rebuild::set_retired(&self.data_dir, !self.undo)?;
        self.output.print(&value, format!("{shown} {done}"))
    }
}

impl Rebuild {
    fn run(self) -> Result<(), Failure> {
        must_exist(&self.data_dir)?;
        let options = RebuildOptions {
            cluster: self.cluster,
            server: self.server.map(ServerId),
            write: self.yes,
            unix_seconds: unix_seconds(),
        };
        let (found, rebuilt) = rebuild::rebuild(&self.data_dir, options)?;
        match rebuilt {
            Ok(rebuilt) => self.output.print(&json_of(&found, &rebuilt, self.yes), text_of(&found, &rebuilt, self.yes)),
            Err(refused) => {
                if !self.output.json {
                    crate::output::line(evidence_text(&found))?;
                }
                Err(refused.into())
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "when DISK was made is written down for people")]
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What was found, before anything is concluded from it.
fn evidence_text(found: &Evidence) -> String {
    let copy = |copy: usize| found.disk[copy].clone().unwrap_or_else(|| "good".into());
    let server = match found.server {
        Some((server, chunks)) if found.servers_named > 1 => {
            format!("{chunks} chunks name server {server}, others {} more", found.servers_named - 1)
        }
        Some((server, chunks)) => format!("{chunks} chunks name server {server}"),
        None => "no chunk names one".into(),
    };
    let lost =
        |count: u32, what: &str| if count > 0 { format!(", {count} without a valid {what}") } else { String::new() };
    let rows = [
        ("DISK.A", copy(0)),
        ("DISK.B", copy(1)),
        ("pages", format!("{} of {} are of disk {}", found.agree, found.pages(), hex(&found.disk_uuid))),
        ("boots", format!("up to {}", found.boot_gen)),
        ("journals", format!("{}{}", found.rings, lost(found.rings_unknown, "root"))),
        ("slots", format!("{}{}, {} with chunks", found.slots, lost(found.slots_lost, "header"), found.chunks)),
        ("server", server),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    table(&rows, &[])
}

fn text_of(found: &Evidence, rebuilt: &Rebuilt, written: bool) -> String {
    let disk = format!("DISK of server {} of cluster {}", rebuilt.server, rebuilt.cluster);
    let end = if written {
        format!("{disk} is written; start the server, it verifies everything that the journals hold")
    } else {
        format!("nothing was changed; --yes writes {disk}")
    };
    format!("{}\n{end}", evidence_text(found))
}

fn json_of(found: &Evidence, rebuilt: &Rebuilt, written: bool) -> Value {
    json!({
        "written": written,
        "cluster": rebuilt.cluster.to_string(),
        "server": rebuilt.server.0,
        "disk_uuid": hex(&rebuilt.disk_uuid),
        "boot_gen": rebuilt.boot_gen,
        "rings": rebuilt.rings,
        "slots": rebuilt.slots,
        "slots_lost": found.slots_lost,
        "chunks": found.chunks,
        "pages": found.pages(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_told_before_what_follows_from_it() {
        let mut found = Evidence::default();
        found.disk = [Some("wrong checksum".into()), Some("blank page".into())];
        (found.disk_uuid, found.agree, found.boot_gen) = ([0xab; 16], 9, 3);
        (found.rings, found.rings_unknown, found.slots, found.chunks) = (2, 1, 4, 2);
        (found.server, found.servers_named) = (Some((ServerId(3), 2)), 1);
        let rebuilt = Rebuilt {
            cluster: ClusterId([1; 16]),
            server: ServerId(3),
            disk_uuid: [0xab; 16],
            boot_gen: 3,
            rings: 2,
            slots: 4,
        };
        let text = "DISK.A    wrong checksum
DISK.B    blank page
pages     9 of 0 are of disk abababababababababababababababab
boots     up to 3
journals  2, 1 without a valid root
slots     4, 2 with chunks
server    2 chunks name server 3
nothing was changed; --yes writes DISK of server 3 of cluster 01010101010101010101010101010101";
        assert_eq!(text_of(&found, &rebuilt, false), text);
        assert!(
            text_of(&found, &rebuilt, true)
                .ends_with("start the server, it verifies everything that the journals hold")
        );
    }
}
