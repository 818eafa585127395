//! Bounds of the fields of control messages, checked while they are decoded.
//!
//! The codec bounds a whole message; these bound what a receiver would otherwise index, divide by or
//! keep. A value outside is [`crate::message::Malformed::Codec`], before anybody sees the message.

use serde::de::{Deserialize, Deserializer, Error};

use crate::limits::{ADDRESS_LEN_MAX, BLOCK_SIZE, CHUNK_SIZE, DEDUP_ENTRIES_MAX, MEMBERS_MAX, PAGE_ENTRIES_MAX};
use crate::member::Member;
use crate::op::DedupEntry;

/// A chain: 1 to [`MEMBERS_MAX`].
pub(crate) fn chain<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Member>, D::Error> {
    let members = Vec::deserialize(input)?;
    if members.is_empty() {
        return Err(D::Error::custom("a chain without members"));
    }
    no_longer(members, MEMBERS_MAX)
}

/// A dedup table: at most [`DEDUP_ENTRIES_MAX`].
pub(crate) fn dedup<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<DedupEntry>, D::Error> {
    no_longer(Vec::deserialize(input)?, DEDUP_ENTRIES_MAX)
}

/// A page: at most [`PAGE_ENTRIES_MAX`].
pub(crate) fn page<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    no_longer(Vec::deserialize(input)?, PAGE_ENTRIES_MAX as usize)
}

/// A value for each block of a chunk at most.
pub(crate) fn blocks<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    no_longer(Vec::deserialize(input)?, (CHUNK_SIZE / BLOCK_SIZE) as usize)
}

/// An address or another short text: at most [`ADDRESS_LEN_MAX`] bytes.
pub(crate) fn address<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    let text = String::deserialize(input)?;
    if text.len() > ADDRESS_LEN_MAX {
        return Err(D::Error::custom(format_args!("text of {} bytes is longer than {ADDRESS_LEN_MAX}", text.len())));
    }
    Ok(text)
}

/// A number of shards: not zero, because handles are divided by it.
pub(crate) fn shards<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    match u32::deserialize(input)? {
        0 => Err(D::Error::custom("a server without shards")),
        shards => Ok(shards),
    }
}

/// A length inside a chunk: at most [`CHUNK_SIZE`].
pub(crate) fn chunk_len<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    let len = u32::deserialize(input)?;
    if len > CHUNK_SIZE {
        return Err(D::Error::custom(format_args!("length {len} is larger than a chunk")));
    }
    Ok(len)
}

fn no_longer<T, E: Error>(list: Vec<T>, max: usize) -> Result<Vec<T>, E> {
    if list.len() > max {
        return Err(E::custom(format_args!("{} entries are more than {max}", list.len())));
    }
    Ok(list)
}
