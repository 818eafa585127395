//! Just enough HTTP/1.1 to look at the gateway from outside: one request a connection, raw bytes.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

pub async fn get(address: &str, target: &str) -> io::Result<Answer> {
    send(address, "GET", target, &[], &[]).await
}

pub async fn put(address: &str, target: &str, body: &[u8]) -> io::Result<Answer> {
    send(address, "PUT", target, &[], body).await
}

/// Sends one request, with a body when there is one, and reads the answer until the server closes.
pub async fn send(
    address: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || matches!(method, "PUT" | "POST" | "PATCH") {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    answer(stream).await
}

async fn answer(mut stream: TcpStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no end of the head"))?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let mut body = bytes.split_off(end + 4);
    let mut answer = Answer { status, head, body: Vec::new() };
    if answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        body = unchunk(&body)?;
    } else if let Some(len) = answer.header("content-length").and_then(|value| value.parse::<usize>().ok())
        && body.len() != len
        && status != 304
    {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} of {len} bytes", body.len())));
    }
    answer.body = body;
    Ok(answer)
}

fn unchunk(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "broken chunked body");
    let mut out = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").ok_or_else(broken)?;
        let size = std::str::from_utf8(&rest[..end]).ok().and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
        let size = size.ok_or_else(broken)?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Ok(out);
        }
        out.extend_from_slice(rest.get(..size).ok_or_else(broken)?);
        rest = rest.get(size + 2..).ok_or_else(broken)?;
    }
}
