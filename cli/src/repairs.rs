//! `hercules repairs`: which chunks are copied and which wait, and how fast that may be.

use benches::report::size;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use wire::repairs::RepairsOk;

use crate::cluster::Cluster;
use crate::exit::Failure;
use crate::output::{Output, table};
use crate::size;

/// Chunks shown when nobody says how many.
const SHOWN: u32 = 20;

/// Show, pause, resume or limit the making of new copies
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules repairs                     what runs and what waits, most urgent first
  hercules repairs estimate            how much is left, and for how long
  hercules repairs pause               begin nothing; what runs ends
  hercules repairs resume
  hercules repairs rate 50M            at most 50 MiB/s into each server
  hercules repairs rate --cluster 1G   and 1 GiB/s in all; `rate auto` takes both back")]
pub(crate) struct Repairs {
    #[command(subcommand)]
    command: Option<RepairsCommand>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

/// What to do with them.
#[derive(Debug, Subcommand)]
enum RepairsCommand {
    List(List),
    Estimate(Estimate),
    Pause(Pause),
    Resume(Resume),
    Rate(Rate),
}

/// Show what runs and what waits
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules repairs list
  hercules repairs list --limit 1000 --json | jq -r '.waiting[].chunk'")]
struct List {
    /// Waiting chunks to show at most
    #[arg(long, default_value_t = SHOWN, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

/// Show how much is left, by urgency, and for how long
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules repairs estimate
  hercules repairs estimate --json | jq .estimate_s")]
struct Estimate {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

/// Begin no more copies; what runs ends. Holds until `resume`, also over a restart of the master
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules repairs pause               before work on the network
  hercules repairs pause && hercules repairs list")]
struct Pause {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

/// Begin copies again
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules repairs resume
  hercules repairs resume --json")]
struct Resume {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

/// Limit copies, in bytes per second
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules repairs rate 50M                  into each server
  hercules repairs rate 50M --cluster 200M   and all together
  hercules repairs rate auto                 30 % of what each disk can do, no limit for all

It counts for copies that begin from now on.")]
struct Rate {
    /// Into each server: 50M, 1G, or auto for 30 % of what its disk can do
    #[arg(value_parser = parse_rate, required_unless_present = "all")]
    server: Option<u64>,
    /// All together: 1G, or auto for no limit
    #[arg(id = "all", long = "cluster", value_name = "RATE", value_parser = parse_rate)]
    all: Option<u64>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

/// Bytes per second; zero for `auto`.
fn parse_rate(text: &str) -> Result<u64, String> {
    match text {
        "auto" => Ok(0),
        _ => match size::parse(text.trim_end_matches("/s"))? {
            0 => Err("a rate of nothing never ends: `hercules repairs pause` stops repair".into()),
            rate => Ok(rate),
        },
    }
}

impl Repairs {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// When no master answers, or it refuses.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.command {
            None => list(self.output, &self.cluster, SHOWN).await,
            Some(RepairsCommand::List(it)) => list(it.output, &it.cluster, it.limit).await,
            Some(RepairsCommand::Estimate(it)) => {
                let repairs = it.cluster.connect().await?.repairs(0).await?;
                it.output.print(&estimate_json(&repairs), estimate(&repairs))
            }
            Some(RepairsCommand::Pause(it)) => {
                it.cluster.connect().await?.pause_repairs(true).await?;
                it.output.print(&json!({ "paused": true }), "repair is paused: `hercules repairs resume` ends that")
            }
            Some(RepairsCommand::Resume(it)) => {
                it.cluster.connect().await?.pause_repairs(false).await?;
                it.output.print(&json!({ "paused": false }), "repair goes on")
            }
            Some(RepairsCommand::Rate(it)) => {
                // `auto` for each server and nothing else is the way back to the beginning.
                let all = if it.server == Some(0) { it.all.or(Some(0)) } else { it.all };
                let client = it.cluster.connect().await?;
                client.limit_repairs(it.server, all).await?;
                let repairs = client.repairs(0).await?;
                let value = json!({ "server_rate": repairs.server_rate, "cluster_rate": repairs.cluster_rate });
                it.output.print(&value, limits(&repairs))
            }
        }
    }
}

async fn list(output: Output, cluster: &Cluster, limit: u32) -> Result<(), Failure> {
    let repairs = cluster.connect().await?.repairs(limit).await?;
    output.print(&json(&repairs), text(&repairs))
}

fn limits(repairs: &RepairsOk) -> String {
    let server = match repairs.server_rate {
        0 => "30 % of its disk".into(),
        rate => format!("{}/s", size(rate)),
    };
    let all = match repairs.cluster_rate {
        0 => "no limit".into(),
        rate => format!("{}/s", size(rate)),
    };
    format!("limits      {server} into each server, {all} for all together")
}

fn estimate(repairs: &RepairsOk) -> String {
    let state = match (repairs.safe_mode, repairs.paused) {
        (true, _) => "waits for the chunkservers to report (safe mode)",
        (_, true) => "paused: `hercules repairs resume` ends that",
        _ if repairs.running.is_empty() && repairs.waiting.is_empty() => "nothing to do",
        _ => "at work",
    };
    let (chunks, bytes) =
        repairs.waiting.iter().fold((0, 0), |sum, waiting| (sum.0 + waiting.chunks, sum.1 + waiting.bytes));
    let left = match repairs.estimate_s {
        Some(seconds) => humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string(),
        None => "not known before the first copy".into(),
    };
    let mut lines = vec![
        format!("repair      {state}"),
        limits(repairs),
        format!("waiting     {chunks} chunks, {}; {} on their way", size(bytes), repairs.running.len()),
        format!("left        {left}"),
        format!(
            "done        {} copies, {}, of which {} were there; {} failed",
            repairs.done,
            size(repairs.done_bytes),
            size(repairs.kept_bytes),
            repairs.failed
        ),
    ];
    lines.extend(
        repairs.waiting.iter().map(|waiting| {
            format!("  {:<10}{} chunks, {}", waiting.urgency.name(), waiting.chunks, size(waiting.bytes))
        }),
    );
    lines.join("\n")
}

fn text(repairs: &RepairsOk) -> String {
    let mut rows = vec![["CHUNK", "WHY", "STATE", "SIZE", "COPIES", "FROM", "TO"].map(String::from).to_vec()];
    rows.extend(repairs.running.iter().map(|copy| {
        let state = format!("for {}s", copy.since_ms / 1000);
        let (from, to) = (copy.from.to_string(), copy.to.to_string());
        vec![copy.chunk.to_string(), copy.urgency.name().into(), state, size(copy.len.into()), "-".into(), from, to]
    }));
    rows.extend(repairs.next.iter().map(|waiting| {
        let (len, copies) = (size(waiting.len.into()), waiting.copies.to_string());
        vec![
            waiting.chunk.to_string(),
            waiting.urgency.name().into(),
            "waits".into(),
            len,
            copies,
            "-".into(),
            "-".into(),
        ]
    }));
    if rows.len() == 1 {
        estimate(repairs)
    } else {
        format!("{}\n\n{}", estimate(repairs), table(&rows, &[3, 4, 5, 6]))
    }
}

fn estimate_json(repairs: &RepairsOk) -> Value {
    let by = |count: fn(&wire::repairs::Waiting) -> u64| {
        let items = repairs.waiting.iter().map(|waiting| (waiting.urgency.name().to_owned(), count(waiting).into()));
        Value::Object(items.collect())
    };
    json!({
        "paused": repairs.paused,
        "safe_mode": repairs.safe_mode,
        "server_rate": repairs.server_rate,
        "cluster_rate": repairs.cluster_rate,
        "waiting_chunks": by(|waiting| waiting.chunks),
        "waiting_bytes": by(|waiting| waiting.bytes),
        "running_count": repairs.running.len(),
        "done": repairs.done,
        "done_bytes": repairs.done_bytes,
        "kept_bytes": repairs.kept_bytes,
        "failed": repairs.failed,
        "estimate_s": repairs.estimate_s,
    })
}

fn json(repairs: &RepairsOk) -> Value {
    let mut value = estimate_json(repairs);
    let running = repairs.running.iter().map(|copy| {
        json!({
            "chunk": copy.chunk.0,
            "why": copy.urgency.name(),
            "len": copy.len,
            "from": copy.from.0,
            "to": copy.to.0,
            "since_ms": copy.since_ms,
        })
    });
    value["running"] = running.collect();
    let waiting = repairs.next.iter().map(|waiting| {
        json!({
            "chunk": waiting.chunk.0,
            "why": waiting.urgency.name(),
            "len": waiting.len,
            "copies": waiting.copies,
        })
    });
    value["waiting"] = waiting.collect();
    value
}

#[cfg(test)]
mod tests {
    use wire::ChunkHandle;
    use wire::repairs::{Urgency, Waiting, WaitingChunk};

    use super::*;

    #[test]
    fn a_rate_has_a_unit_or_is_left_to_the_disks_and_is_never_nothing() {
        assert_eq!(parse_rate("50M"), Ok(50 << 20));
        assert_eq!(parse_rate("1G/s"), Ok(1 << 30));
        assert_eq!(parse_rate("auto"), Ok(0));
        assert!(parse_rate("0").is_err_and(|text| text.contains("pause")));
        assert!(parse_rate("fast").is_err());
    }

    #[test]
    fn what_waits_is_told_with_its_reason_and_programs_get_the_same() {
        let repairs = RepairsOk {
            paused: true,
            safe_mode: false,
            server_rate: 50 << 20,
            cluster_rate: 0,
            waiting: vec![Waiting { urgency: Urgency::Last, chunks: 2, bytes: 3 << 20 }],
            next: vec![WaitingChunk { chunk: ChunkHandle(7), urgency: Urgency::Last, len: 4096, copies: 1 }],
            running: vec![],
            done: 1,
            done_bytes: 4096,
            kept_bytes: 0,
            failed: 0,
            estimate_s: Some(90),
            draining: vec![],
        };
        let shown = text(&repairs);
        for part in ["paused", "2 chunks", "1m 30s", "last", "waits", "/s into each server"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        let value = json(&repairs);
        assert_eq!((&value["waiting_chunks"]["last"], &value["estimate_s"]), (&json!(2), &json!(90)));
        assert_eq!(value["waiting"][0]["chunk"], json!(7));
    }
}
