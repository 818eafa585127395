//! `hercules stat`: what a name stands for, and with `--chunks` whether all replicas are the same.

use clap::Args;
use client::Client;
use futures_util::future::join_all;
use serde::Serialize;
use wire::NamePath;
use wire::limits::PAGE_ENTRIES_MAX;
use wire::locate::{Location, Position};
use wire::member::{ChunkState, Member, ReplicaState};
use wire::namespace::Attr;
use wire::seal::DigestOk;

use super::view::{View, hex};
use crate::cluster::{Cluster, parse_path};
use crate::exit::{Code, Failure};
use crate::output::{Output, table};

/// Show what a path stands for
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules stat /data.bin
  hercules stat --chunks /data.bin     asks every replica for its digest; exit code 1 when they differ")]
pub(crate) struct Stat {
    /// Path in the cluster
    #[arg(value_name = "REMOTE", value_parser = parse_path)]
    remote: NamePath,
    /// List every chunk, and compare the digests of its replicas
    #[arg(long)]
    chunks: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

#[derive(Serialize)]
struct Result_<'a> {
    #[serde(flatten)]
    file: View<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_list: Option<Vec<Chunk>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas_equal: Option<bool>,
}

/// One chunk and what its replicas said.
#[derive(Debug, Serialize)]
struct Chunk {
    index: u32,
    handle: String,
    epoch: u32,
    state: &'static str,
    start: u64,
    length: u32,
    equal: bool,
    replicas: Vec<Replica>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Replica {
    server: u32,
    address: String,
    #[serde(flatten)]
    answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Answer {
    Has { length: u32, digest: String, state: &'static str },
    Failed { error: String },
}

impl Stat {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the cluster says; with `--chunks` a silent failure when the replicas of a chunk differ or do not answer.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let attr = client.stat(&self.remote).await?;
        let list = if self.chunks && !attr.is_dir { Some(chunks(&client, &attr).await?) } else { None };
        let equal = list.as_ref().map(|list| list.iter().all(|chunk| chunk.equal));
        let file = View::new(self.remote.as_str(), &attr);
        let mut text = file.text();
        if let (Some(list), Some(equal)) = (&list, equal) {
            text = format!("{text}\n\n{}\n{}", chunk_table(list), verdict(list, equal));
        }
        self.output.print(&Result_ { file, chunk_list: list, replicas_equal: equal }, text)?;
        if equal == Some(false) { Err(Failure::silent(Code::Failed)) } else { Ok(()) }
    }
}

async fn chunks(client: &Client, attr: &Attr) -> Result<Vec<Chunk>, Failure> {
    let mut out: Vec<Chunk> = Vec::new();
    loop {
        let next = out.last().map_or(0, |chunk| chunk.index.saturating_add(1));
        let page = client.locations(attr.inode, Position::Index(next), PAGE_ENTRIES_MAX).await?;
        // A page that does not lead on would be asked for again for ever.
        let items: Vec<Location> = page.items.into_iter().filter(|item| item.index >= next).collect();
        if items.is_empty() {
            return Ok(out);
        }
        for location in items {
            out.push(chunk(client, location).await);
        }
        if out.last().is_some_and(|chunk| chunk.index.saturating_add(1) >= page.chunk_count) {
            return Ok(out);
        }
    }
}

async fn chunk(client: &Client, location: Location) -> Chunk {
    let asked = location.members.iter().map(|member| ask(client, member, &location));
    let replicas = join_all(asked).await;
    Chunk {
        index: location.index,
        handle: location.chunk.to_string(),
        epoch: location.epoch.0,
        state: match location.state {
            ChunkState::Open => "open",
            ChunkState::Sealing => "sealing",
            ChunkState::Sealed => "sealed",
            ChunkState::Reopened => "reopened",
        },
        start: location.start,
        length: length(&location, &replicas),
        equal: equal(&replicas),
        replicas,
    }
}

async fn ask(client: &Client, member: &Member, location: &Location) -> Replica {
    let answer = match client.digest(member, location.chunk).await {
        Ok(DigestOk { len, digest, state, .. }) => {
            Answer::Has { length: len, digest: hex(&digest), state: replica_state(state) }
        }
        Err(error) => Answer::Failed { error: error.to_string() },
    };
    Replica { server: member.server.0, address: member.address.clone(), answer }
}

/// All replicas answered, and there is one at least, with the same length and digest.
fn equal(replicas: &[Replica]) -> bool {
    let content = |replica: &Replica| match &replica.answer {
        Answer::Has { length, digest, .. } => Some((*length, digest.clone())),
        Answer::Failed { .. } => None,
    };
    let Some(first) = replicas.first().and_then(content) else { return false };
    replicas.iter().all(|replica| content(replica).as_ref() == Some(&first))
}

/// Of an open chunk the master knows only what was last reported; its replicas know better.
fn length(location: &Location, replicas: &[Replica]) -> u32 {
    let reported = replicas.iter().filter_map(|replica| match replica.answer {
        Answer::Has { length, .. } => Some(length),
        Answer::Failed { .. } => None,
    });
    if matches!(location.state, ChunkState::Sealed | ChunkState::Reopened) {
        location.len
    } else {
        reported.min().unwrap_or(location.len)
    }
}

fn replica_state(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Open => "open",
        ReplicaState::Rwr => "restarted",
        ReplicaState::Sealed => "sealed",
        ReplicaState::Condemned => "condemned",
    }
}

fn chunk_table(list: &[Chunk]) -> String {
    let header = ["CHUNK", "HANDLE", "EPOCH", "STATE", "LENGTH", "SERVER", "ADDRESS", "DIGEST"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for chunk in list {
        for (position, replica) in chunk.replicas.iter().enumerate() {
            let own = [
                chunk.index.to_string(),
                chunk.handle.clone(),
                chunk.epoch.to_string(),
                chunk.state.to_owned(),
                chunk.length.to_string(),
            ];
            let mut row = if position == 0 { own.to_vec() } else { vec![String::new(); own.len()] };
            row.extend([replica.server.to_string(), replica.address.clone()]);
            row.push(match &replica.answer {
                Answer::Has { digest, .. } if chunk.equal => digest.clone(),
                Answer::Has { digest, length, state } => format!("{digest} of {length} bytes ({state})"),
                Answer::Failed { error } => error.clone(),
            });
            rows.push(row);
        }
    }
    table(&rows, &[0, 2, 4, 5])
}

fn verdict(list: &[Chunk], equal: bool) -> String {
    if equal {
        return format!("replicas of all {} chunks are equal", list.len());
    }
    let different: Vec<String> =
        list.iter().filter(|chunk| !chunk.equal).map(|chunk| format!("{} ({})", chunk.index, chunk.state)).collect();
    format!("replicas differ or do not answer, chunks: {}", different.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(server: u32, answer: Option<(u32, &str)>) -> Replica {
        let answer = match answer {
            Some((length, digest)) => Answer::Has { length, digest: digest.into(), state: "sealed" },
            None => Answer::Failed { error: "no answer".into() },
        };
        Replica { server, address: "a:1".into(), answer }
    }

    fn chunk(replicas: Vec<Replica>) -> Chunk {
        let equal = equal(&replicas);
        Chunk { index: 0, handle: "0a".into(), epoch: 1, state: "sealed", start: 0, length: 5, equal, replicas }
    }

    #[test]
    fn equal_means_that_every_replica_answered_with_the_same_bytes() {
        let good = || replica(1, Some((5, "ab")));
        assert!(equal(&[good(), replica(2, Some((5, "ab")))]));
        for other in [Some((5, "ac")), Some((4, "ab")), None] {
            assert!(!equal(&[good(), replica(2, other)]), "{other:?}");
            assert!(!equal(&[replica(2, other), good()]), "{other:?}");
        }
        assert!(!equal(&[]));
    }

    #[test]
    fn a_replica_that_differs_is_shown_with_what_it_has() {
        let list = [chunk(vec![replica(1, Some((5, "ab"))), replica(2, Some((4, "cd"))), replica(3, None)])];
        let text = chunk_table(&list);
        assert!(text.contains("cd of 4 bytes (sealed)") && text.contains("no answer"), "{text}");
        assert_eq!(verdict(&list, false), "replicas differ or do not answer, chunks: 0 (sealed)");
    }

    #[test]
    fn a_replica_is_one_flat_object() {
        let json = serde_json::to_value(replica(7, Some((5, "ab")))).unwrap();
        assert_eq!((json["server"].as_u64(), json["digest"].as_str()), (Some(7), Some("ab")));
        assert!(json.get("error").is_none());
    }
}
