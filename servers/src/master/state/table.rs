//! One table of the state: ordered rows, and which of them the checkpoint has not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;

use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::{ChunkHandle, InodeId, ServerId, codec};

/// A key as bytes whose order is the key's order.
pub(super) trait Key: Ord + Clone {
    /// As bytes.
    fn to_bytes(&self) -> Vec<u8>;
    /// Back; `None` for bytes that are no key.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

/// A row as it is stored: its key, and its value or the fact that it is gone.
pub type Row = (Vec<u8>, Option<Vec<u8>>);

/// Rows by key, in order.
#[derive(Clone, Debug)]
pub(super) struct Table<K, V> {
    rows: BTreeMap<K, V>,
    dirty: BTreeSet<K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), dirty: BTreeSet::new() }
    }
}

impl<K: Key, V: Serialize + DeserializeOwned> Table<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.rows.iter()
    }

    pub(super) fn range(&self, range: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.rows.range(range)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.dirty.insert(key.clone());
        self.rows.insert(key, value)
    }

    pub(super) fn edit(&mut self, key: &K) -> Option<&mut V> {
        let value = self.rows.get_mut(key)?;
        self.dirty.insert(key.clone());
        Some(value)
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.rows.remove(key)?;
        self.dirty.insert(key.clone());
        Some(value)
    }

    pub(super) fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// Rows changed since the last call, as bytes.
    pub(super) fn take_dirty(&mut self) -> Vec<Row> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.iter().map(|key| (key.to_bytes(), self.rows.get(key).map(codec::encode))).collect()
    }

    /// All rows, as bytes.
    pub(super) fn dump(&self) -> Vec<Row> {
        self.rows.iter().map(|(key, value)| (key.to_bytes(), Some(codec::encode(value)))).collect()
    }

    /// Takes a stored row back.
    pub(super) fn load(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let key = K::from_bytes(key).ok_or_else(|| format!("key {key:02x?} has an impossible form"))?;
        let value = codec::decode(value).map_err(|error| error.to_string())?;
        self.rows.insert(key, value);
        Ok(())
    }
}

impl Key for u64 {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_be_bytes().into()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

impl Key for InodeId {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        u64::from_bytes(bytes).map(Self)
    }
}

impl Key for ChunkHandle {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        u64::from_bytes(bytes).map(Self)
    }
}

impl Key for ServerId {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.to_be_bytes().into()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(u32::from_be_bytes(bytes)))
    }
}

/// A replica: a chunk on a server.
impl Key for (ChunkHandle, ServerId) {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.0.0.to_be_bytes()[..], &self.1.0.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (chunk, server) = bytes.split_first_chunk()?;
        Some((ChunkHandle(u64::from_be_bytes(*chunk)), ServerId(u32::from_be_bytes(server.try_into().ok()?))))
    }
}

/// A name in a directory.
impl Key for (InodeId, String) {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.0.0.to_be_bytes(), self.1.as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (inode, name) = bytes.split_first_chunk()?;
        Some((InodeId(u64::from_be_bytes(*inode)), String::from_utf8(name.to_vec()).ok()?))
    }
}

/// A chunk index in a file.
impl Key for (InodeId, u32) {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.0.0.to_be_bytes()[..], &self.1.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (inode, index) = bytes.split_first_chunk()?;
        Some((InodeId(u64::from_be_bytes(*inode)), u32::from_be_bytes(index.try_into().ok()?)))
    }
}

/// A request of a client.
impl Key for ([u8; 16], u64) {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.0[..], &self.1.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (client, number) = bytes.split_first_chunk()?;
        Some((*client, u64::from_be_bytes(number.try_into().ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_bytes_and_keep_their_order() {
        let names = [(InodeId(1), "b".to_owned()), (InodeId(2), String::new()), (InodeId(256), "a".to_owned())];
        let bytes: Vec<_> = names.iter().map(Key::to_bytes).collect();
        assert!(bytes.is_sorted());
        for (name, bytes) in names.iter().zip(&bytes) {
            assert_eq!(<(InodeId, String)>::from_bytes(bytes).as_ref(), Some(name));
        }
        let extents = [(InodeId(1), 255), (InodeId(1), 256), (InodeId(2), 0)];
        assert!(extents.iter().map(Key::to_bytes).is_sorted());
        assert_eq!(<(InodeId, u32)>::from_bytes(&extents[1].to_bytes()), Some(extents[1]));
    }

    #[test]
    fn a_removed_row_is_dirty_too() {
        let mut table = Table::<u64, u32>::default();
        table.insert(1, 10);
        table.insert(2, 20);
        assert_eq!(table.take_dirty().len(), 2);
        table.remove(&1);
        assert_eq!(table.remove(&9), None);
        *table.edit(&2).unwrap() = 21;
        assert_eq!(table.take_dirty(), [(1_u64.to_bytes(), None), (2_u64.to_bytes(), Some(codec::encode(&21_u32)))]);
        assert_eq!(table.take_dirty(), []);
    }
}
