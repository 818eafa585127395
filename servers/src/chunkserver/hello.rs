//! The data port: every connection says HELLO within a deadline, then its socket goes to the shard
//! it named, once; after that no byte crosses a core.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use wire::frame::{self, HEADER_LEN, Header};
use wire::hello::{Hello, HelloOk, Role};
use wire::{ClusterId, Fault, Kind};

use super::board::Board;
use super::mailbox::ToShard;

/// Who has not said hello by now is not one of ours.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that may be saying hello at a time.
const GREETINGS_MAX: usize = 512;

/// A hello has a few dozen bytes; a longer one is not one.
const HELLO_LEN_MAX: u32 = 1024;

/// A peer that is silent for so long is asked by the kernel whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Accepts connections for ever.
pub(crate) async fn accept(listener: TcpListener, board: Arc<Board>) {
    let places = Arc::new(Semaphore::new(GREETINGS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let board = Arc::clone(&board);
                tokio::spawn(async move {
                    let greeted = tokio::time::timeout(HELLO_TIMEOUT, greet(stream, &board)).await;
                    let why = greeted.unwrap_or_else(|_| Err("no hello in time".into()));
                    if let Err(why) = why {
                        board.refused_one();
                        tracing::warn!(%peer, %why, "connection refused");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would spin.
                tracing::warn!(%error, "data port cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn greet(mut stream: TcpStream, board: &Board) -> Result<(), String> {
    let said = |error: std::io::Error| error.to_string();
    stream.set_nodelay(true).map_err(said)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 6);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(said)?;
    let (request_id, hello) = receive(&mut stream).await?;
    if let Err(fault) = check(&hello, board.cluster(), board.shards()) {
        let _ = stream.write_all(&frame::head(&fault, request_id, 0, 0)).await;
        return Err(fault.text);
    }
    let ok = HelloOk {
        server: board.server(),
        boot: board.boot,
        cluster: board.cluster(),
        shards: board.shards(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    stream.write_all(&frame::head(&ok, request_id, 0, 0)).await.map_err(said)?;
    let shard = hello.shard;
    let stream = stream.into_std().map_err(said)?;
    let handed = board.tell(shard, ToShard::Connection { stream, hello }).await;
    if handed { Ok(()) } else { Err(format!("shard {shard} has stopped")) }
}

/// Reads exactly one frame: what follows belongs to the shard.
async fn receive(stream: &mut TcpStream) -> Result<(u64, Hello), String> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).await.map_err(|error| format!("before hello: {error}"))?;
    let header = Header::decode_exact(&head).map_err(|error| error.to_string())?;
    if header.fields_len > HELLO_LEN_MAX {
        return Err(format!("{} bytes are too many for a hello", header.fields_len));
    }
    let mut fields = vec![0; header.fields_len as usize];
    stream.read_exact(&mut fields).await.map_err(|error| format!("inside hello: {error}"))?;
    let hello = frame::open(&header, &fields).map_err(|error| error.to_string())?;
    Ok((header.request_id, hello))
}

/// Whether this connection belongs here.
fn check(hello: &Hello, cluster: ClusterId, shards: u32) -> Result<(), Fault> {
    let stranger = hello.cluster != ClusterId::default() && hello.cluster != cluster;
    if stranger {
        let text = format!("this server belongs to cluster {cluster}, not to {}", hello.cluster);
        return Err(Fault::new(Kind::Conflict, text));
    }
    if hello.shard >= shards {
        let text = format!("this server has {shards} shards, there is no shard {}", hello.shard);
        return Err(Fault::new(Kind::Invalid, text));
    }
    if hello.role == Role::Chunkserver {
        return Err(Fault::new(Kind::Invalid, "this is a chunkserver's data port, not the master's"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wire::{ServerId, Term};

    use super::*;

    const HOME: ClusterId = ClusterId([7; 16]);

    fn hello() -> Hello {
        Hello { role: Role::Client, server: ServerId(0), boot: 1, cluster: HOME, shard: 1, term: Term(0) }
    }

    #[test]
    fn a_client_that_knows_no_cluster_yet_is_welcome_and_one_of_another_is_not() {
        assert_eq!(check(&hello(), HOME, 2), Ok(()));
        assert_eq!(check(&Hello { cluster: ClusterId::default(), ..hello() }, HOME, 2), Ok(()));
        let stranger = check(&Hello { cluster: ClusterId([8; 16]), ..hello() }, HOME, 2);
        assert_eq!(stranger.map_err(|fault| fault.kind), Err(Kind::Conflict));
    }

    #[test]
    fn a_shard_that_does_not_exist_is_refused() {
        assert_eq!(check(&hello(), HOME, 1).map_err(|fault| fault.kind), Err(Kind::Invalid));
    }
}
