//! Watches the bytes of an HTTP/1 connection for one thing that the protocol library does not tell: what
//! follows a request's body. The library takes it for the next request, so a client that sends more than
//! its `Content-Length` would see a cut file published. Bytes that cannot begin a request condemn the
//! body before them.
//!
//! A pure state machine over the bytes as they are read. It judges; parsing stays with the library. It
//! follows requests one after the other and gives up, silently, on chunked bodies (which end themselves)
//! and once requests are pipelined.

use std::sync::{Mutex, PoisonError};

/// What is known about one connection. Shared by its socket and the requests that came on it.
#[derive(Debug, Default)]
pub(crate) struct Framing(Mutex<Phase>);

#[derive(Debug)]
enum Phase {
    /// Within a request's header; holds what has arrived of it.
    Header(Vec<u8>),
    /// Within a body that lacks this many bytes; zero at its end.
    Body(u64),
    /// These bytes came after the end of a body.
    Surplus(Vec<u8>),
    /// Not followed any further.
    Lost,
}

impl Default for Phase {
    fn default() -> Self {
        Self::Header(Vec::new())
    }
}

/// A header longer than this is refused by the library anyway, or not worth following.
const HEADER_MAX: usize = 64 << 10;

/// Enough to tell a method from anything else.
const SURPLUS_MAX: usize = 16;

const METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"PUT ", b"POST ", b"PATCH ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"TRACE "];

impl Framing {
    /// Takes what was just read.
    pub(crate) fn observe(&self, bytes: &[u8]) {
        let mut phase = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::replace(&mut *phase, Phase::Lost);
        *phase = taken.after(bytes);
    }

    /// Whether something came after the current body that cannot be a request.
    pub(crate) fn has_foreign_surplus(&self) -> bool {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // Asked at the end of a body, so a header that has begun is what came behind it.
            Phase::Surplus(bytes) | Phase::Header(bytes) => !could_begin_a_request(bytes),
            Phase::Body(_) | Phase::Lost => false,
        }
    }

    /// Whether the peer may still be sending a request.
    pub(crate) fn mid_request(&self) -> bool {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Phase::Body(left) => *left > 0,
            Phase::Surplus(_) | Phase::Lost => true,
            Phase::Header(have) => !have.is_empty(),
        }
    }
}

impl Phase {
    fn after(self, bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return self;
        }
        match self {
            Self::Lost => Self::Lost,
            // The body was whole and nothing came behind it: this is the next request.
            Self::Body(0) => Self::Header(Vec::new()).after(bytes),
            Self::Body(left) => Self::in_body(left, bytes),
            Self::Surplus(mut have) => {
                have.extend(bytes.iter().take(SURPLUS_MAX.saturating_sub(have.len())));
                Self::Surplus(have)
            }
            Self::Header(have) if have.is_empty() => Self::in_header(bytes, |rest| rest.to_vec()),
            Self::Header(mut have) => {
                have.extend_from_slice(bytes);
                Self::in_header(&have.clone(), |_| have)
            }
        }
    }

    /// `unfinished` makes the bytes to keep when the header does not end here.
    fn in_header(bytes: &[u8], unfinished: impl FnOnce(&[u8]) -> Vec<u8>) -> Self {
        let start = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let Some(end) = header_end(&bytes[start..]) else {
            return if bytes.len() > HEADER_MAX { Self::Lost } else { Self::Header(unfinished(bytes)) };
        };
        let (header, rest) = bytes[start..].split_at(end);
        match body_len(header) {
            Some(len) => Self::in_body(len, rest),
            None => Self::Lost,
        }
    }

    fn in_body(left: u64, bytes: &[u8]) -> Self {
        let len = bytes.len() as u64;
        if len <= left {
            return Self::Body(left - len);
        }
        // `left` is smaller than a length in memory.
        let surplus = bytes.get(usize::try_from(left).unwrap_or(usize::MAX)..).unwrap_or_default();
        Self::Surplus(surplus[..surplus.len().min(SURPLUS_MAX)].to_vec())
    }
}

/// Length of the header with the empty line at its end, lines ending in LF or CRLF.
fn header_end(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    while let Some(at) = bytes[line..].iter().position(|byte| *byte == b'\n') {
        let next = line + at + 1;
        if matches!(&bytes[line..next], b"\n" | b"\r\n") {
            return Some(next);
        }
        line = next;
    }
    None
}

/// The length of the body after this header; `None` when it is not said in bytes.
fn body_len(header: &[u8]) -> Option<u64> {
    let mut len = 0;
    for line in header.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return None;
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            len = std::str::from_utf8(value).ok()?.parse().ok()?;
        }
    }
    Some(len)
}

/// An empty line may come before a request; else it must begin with a method.
fn could_begin_a_request(surplus: &[u8]) -> bool {
    let start = surplus.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let rest = &surplus[start..];
    METHODS.iter().any(|method| rest.starts_with(method) || method.starts_with(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(pieces: &[&[u8]]) -> bool {
        let framing = Framing::default();
        pieces.iter().for_each(|piece| framing.observe(piece));
        framing.has_foreign_surplus()
    }

    const PUT: &[u8] = b"PUT /fs/a HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: 5 \r\n\r\n";

    #[test]
    fn more_than_was_announced_is_seen_however_it_is_cut() {
        let all = [PUT, b"helloX"].concat();
        for cut in 0..all.len() {
            assert!(foreign(&[&all[..cut], &all[cut..]]), "cut at {cut}");
        }
        assert!(!foreign(&[PUT, b"hello"]));
        assert!(!foreign(&[PUT, b"hell"]));
    }

    #[test]
    fn a_following_request_is_not_foreign() {
        for next in [&b"GET / HTTP/1.1\r\n"[..], b"\r\nPUT /x", b"P", b"\r\n", b"DELETE /"] {
            assert!(!foreign(&[&[PUT, b"hello", next].concat()]), "{next:?}");
        }
        for junk in [&b" world"[..], b"get /", b"\0", b"PUTX", b"PRI * HTTP/2.0"] {
            assert!(foreign(&[&[PUT, b"hello", junk].concat()]), "{junk:?}");
        }
    }

    #[test]
    fn the_second_request_of_a_connection_is_watched_too() {
        assert!(foreign(&[&[PUT, b"hello"].concat(), &[PUT, b"hello!"].concat()]));
        assert!(foreign(&[b"GET / HTTP/1.1\n\n", &[PUT, b"hello!"].concat()]));
        assert!(!foreign(&[&[PUT, b"hello"].concat(), &[PUT, b"hello"].concat()]));
    }

    #[test]
    fn chunked_bodies_and_endless_headers_are_let_go() {
        let chunked = b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nrubbish";
        assert!(!foreign(&[chunked]));
        let framing = Framing::default();
        for _ in 0..100 {
            framing.observe(&[b'x'; 1024]);
        }
        assert!(matches!(*framing.0.lock().unwrap(), Phase::Lost));
    }
}
