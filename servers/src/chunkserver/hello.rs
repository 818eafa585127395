//! The data port: every connection passes the door within a deadline, then its socket goes to the shard
//! it named, once; after that no byte crosses a core.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use wire::hello::{Hello, HelloOk, Role};
use wire::{ClusterId, Fault, Kind, Reason};

use super::board::Board;
use super::mailbox::ToShard;

/// A peer that is silent for so long is asked by the kernel whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Accepts connections for ever.
pub(crate) async fn accept(listener: TcpListener, board: Arc<Board>) {
    loop {
        let Some(place) = board.door.place().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let board = Arc::clone(&board);
                tokio::spawn(async move {
                    if let Err(error) = greet(stream, peer, &board).await {
                        tracing::debug!(%peer, %error, "connection lost");
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

async fn greet(mut stream: TcpStream, peer: SocketAddr, board: &Board) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 6);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let welcome = |hello: &Hello, dialled: Option<&str>| {
        check(hello, board.cluster(), board.shards())?;
        check_address(dialled, &board.address())?;
        Ok(HelloOk {
            server: board.server(),
            boot: board.boot,
            cluster: board.cluster(),
            shards: board.shards(),
            version: env!("CARGO_PKG_VERSION").into(),
        })
    };
    let Some(hello) = board.door.greet(&mut stream, peer, board.server(), welcome).await else { return Ok(()) };
    let shard = hello.shard;
    let stream = stream.into_std()?;
    if !board.tell(shard, ToShard::Connection { stream, hello }).await {
        tracing::warn!(%peer, shard, "connection dropped: the shard has stopped");
    }
    Ok(())
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

/// Whether the server was meant at the address that was dialled. Whoever got hold of an address that
/// was ours before must not pass its callers on to us and sit in between.
fn check_address(dialled: Option<&str>, ours: &str) -> Result<(), Fault> {
    match dialled {
        Some(dialled) if !ours.is_empty() && dialled != ours => {
            let text = format!("this server is reached at {ours}, not at {dialled}: ask the master again");
            Err(Fault::refused(Reason::StaleEpoch, 0, text))
        }
        _ => Ok(()),
    }
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

    #[test]
    fn a_caller_that_proved_another_address_was_passed_on_by_somebody() {
        assert_eq!(check_address(Some("a:1"), "a:1"), Ok(()));
        let passed_on = check_address(Some("b:1"), "a:1");
        assert_eq!(passed_on.map_err(|fault| fault.kind), Err(Kind::StaleEpoch));
        assert_eq!(check_address(None, "a:1"), Ok(()), "without a key nothing is proven");
        assert_eq!(check_address(Some("b:1"), ""), Ok(()), "it does not know its address yet");
    }
}
