//! What every pinned sample must show, and random values of every message.

pub(crate) mod random;

use std::fmt::Debug;

use wire::Body;
use wire::frame::{self, HEADER_LEN, Header};
use wire::message::Malformed;

/// The messages pinned so far.
#[derive(Default)]
pub(crate) struct Pins {
    /// Their tags.
    pub(crate) tags: Vec<u16>,
}

impl Pins {
    /// Holds one sample, see [`hold`].
    pub(crate) fn pin<B: Body + PartialEq + Debug>(&mut self, sample: &B, pinned: &str) {
        self.tags.push(B::TAG);
        hold(sample, pinned);
    }
}

/// Encodes `sample` and compares with the pinned bytes; takes it back; refuses every truncation, every
/// continuation and every flipped bit of it.
///
/// `pinned` is the fields in hexadecimal, spaces for the reader. The layout is a promise to every other
/// build: when a pin must change, so must [`frame::PROTOCOL`].
fn hold<B: Body + PartialEq + Debug>(sample: &B, pinned: &str) {
    let name = wire::message::tag::name(B::TAG).expect("every message has a tag in the list");
    let fields = sample.encode();
    assert_eq!(hex(&fields), pinned.split_whitespace().collect::<String>(), "{name}");
    let framed = frame::head(sample, 7, 1000, sample.payload_len() as usize);
    assert_eq!(receive::<B>(&framed).as_ref().ok(), Some(sample), "{name} comes back");
    for len in 0..fields.len() {
        assert!(B::decode(&fields[..len]).is_err(), "{name} cut to {len} bytes is not a message");
    }
    for len in 0..framed.len() {
        assert!(receive::<B>(&framed[..len]).is_err(), "{name} in a frame cut to {len} bytes is not a message");
    }
    for extra in [&[0][..], &[0; 4], &[0xff; 8]] {
        assert!(B::decode(&[&fields[..], extra].concat()).is_err(), "{name} and {} bytes more", extra.len());
    }
    for bit in 0..framed.len() * 8 {
        let mut flipped = framed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(receive::<B>(&flipped).is_err(), "{name} with bit {bit} flipped is not a message");
    }
}

/// Takes one message off a stream, as a server does.
pub(crate) fn receive<B: Body>(stream: &[u8]) -> Result<B, Malformed> {
    let header = Header::decode(stream).ok_or(Malformed::Short)??;
    let fields = stream.get(HEADER_LEN..HEADER_LEN + header.fields_len as usize).ok_or(Malformed::Short)?;
    frame::open(&header, fields)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
