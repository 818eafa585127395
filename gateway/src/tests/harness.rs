//! A gateway on a port of the kernel's choice, and an HTTP client that hides nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::{Config, Limits};
use crate::server::{Running, serve};
use crate::tests::fake::Fake;

/// Longer than any answer takes, shorter than a test's patience.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Gateway {
    pub(super) fake: Fake,
    pub(super) running: Running,
}

impl Gateway {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let mut config = Config::new(vec!["master:9090".into()]);
        config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        change(&mut config.limits);
        let fake = Fake::default();
        let running = serve(fake.clone(), config).await.unwrap();
        Self { fake, running }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.running.address).await.unwrap()
    }

    /// One request on a connection of its own.
    pub(super) async fn send(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.connect().await;
        let head = head(method, target, fields, Some(body.len()), true);
        stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        Reply::read_to_end(&mut stream).await.unwrap()
    }

    pub(super) async fn get(&self, target: &str) -> Reply {
        self.send("GET", target, &[], b"").await
    }

    pub(super) async fn put(&self, target: &str, body: &[u8]) -> Reply {
        self.send("PUT", target, &[], body).await
    }

    pub(super) async fn json(&self, method: &str, target: &str, body: &str) -> Reply {
        self.send(method, target, &[("content-type", "application/json")], body.as_bytes()).await
    }

    /// Sends these bytes, ends the sending side, and reads all there is.
    pub(super) async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        read_all(&mut stream).await
    }
}

pub(super) fn head(method: &str, target: &str, fields: &[(&str, &str)], len: Option<usize>, close: bool) -> String {
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: test\r\n");
    for (name, value) in fields {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(len) = len {
        head += &format!("content-length: {len}\r\n");
    }
    if close {
        head += "connection: close\r\n";
    }
    head + "\r\n"
}

pub(super) async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset ends the reading; what came before it counts.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the gateway hangs");
    bytes
}

/// Reads up to the end of the next header.
pub(super) async fn read_head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        match timeout(PATIENCE, stream.read_u8()).await.expect("the gateway hangs") {
            Ok(byte) => bytes.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// The body came to the end that its header promised.
    pub(super) whole: bool,
}

impl Reply {
    pub(super) async fn read_to_end(stream: &mut TcpStream) -> Option<Self> {
        Self::parse(&read_all(stream).await)
    }

    /// Takes a response of a connection that was closed after it apart; `None` when there is none.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let fields = lines.map(|line| line.split_once(": ").unwrap());
        let fields: Vec<_> = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut reply = Self { status, fields, body: bytes[end + 4..].to_vec(), whole: true };
        if reply.field("transfer-encoding") == Some("chunked") {
            (reply.body, reply.whole) = unchunk(&reply.body);
        } else if let Some(len) = reply.field("content-length") {
            reply.whole = len.parse() == Ok(reply.body.len());
        }
        Some(reply)
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }
}

fn unchunk(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if len == 0 {
            return (body, true);
        }
        let Some(chunk) = bytes.get(end + 2..end + 2 + len) else { break };
        body.extend_from_slice(chunk);
        bytes = bytes.get(end + 4 + len..).unwrap_or_default();
    }
    (body, false)
}
