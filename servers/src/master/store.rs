//! The checkpoint: the state's rows in redb, and how far they go.
//!
//! Only rows that changed are written, in one transaction with the number of the last entry they
//! include, two-phase. The log is durable up to there before the transaction begins, so the
//! checkpoint is never ahead of it.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::entry::Lsn;
use super::state::{Row, State, TABLES};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Form of the rows. Another one is refused, not guessed at.
const FORMAT: u64 = 1;
/// Cache of redb. The state is in memory; this is only for pages on their way.
const CACHE_LEN: usize = 64 << 20;

/// Why the checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused, or the disk did. After this no more checkpoints are written.
    #[error("checkpoint: {0}")]
    Database(String),
    /// The rows are not what this build or this log expects.
    #[error("checkpoint does not fit: {0}")]
    Unfit(String),
}

/// Any of redb's errors.
fn database(error: impl std::fmt::Display) -> StoreError {
    StoreError::Database(error.to_string())
}

/// An open checkpoint. Its calls block: a thread of its own.
#[derive(Debug)]
pub struct Store {
    db: Database,
}

impl Store {
    /// Opens the checkpoint, or makes an empty one when there is no file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`] for a file that is not a sound database.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let db = Database::builder().set_cache_size(CACHE_LEN).create(path).map_err(database)?;
        Ok(Self { db })
    }

    /// Reads everything: the state, and the uuid of the log it belongs to. `None` before the first
    /// [`Store::save`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Unfit`] for rows that contradict each other or are of another format.
    pub fn load(&self) -> Result<Option<(State, [u8; 16])>, StoreError> {
        let transaction = self.db.begin_read().map_err(database)?;
        let meta = match transaction.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(database(error)),
        };
        let number = |name: &str| -> Result<u64, StoreError> {
            let value = meta.get(name).map_err(database)?;
            let bytes = value.as_ref().and_then(|value| value.value().try_into().ok());
            bytes.map(u64::from_le_bytes).ok_or_else(|| StoreError::Unfit(format!("it has no {name}")))
        };
        let format = number("format")?;
        if format != FORMAT {
            return Err(StoreError::Unfit(format!("it has format {format}, this build reads {FORMAT}")));
        }
        let uuid = meta.get("log").map_err(database)?.and_then(|value| value.value().try_into().ok());
        let uuid = uuid.ok_or_else(|| StoreError::Unfit("it does not name its log".into()))?;
        let mut state = State::default();
        for name in TABLES {
            let table = match transaction.open_table(table(name)) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => continue,
                Err(error) => return Err(database(error)),
            };
            for row in table.iter().map_err(database)? {
                let (key, value) = row.map_err(database)?;
                let loaded = state.load(name, key.value(), value.value());
                loaded.map_err(|why| StoreError::Unfit(format!("table {name}: {why}")))?;
            }
        }
        state.rebuild().map_err(StoreError::Unfit)?;
        if state.applied() != number("applied")? {
            return Err(StoreError::Unfit("its counters and its rows are of different ages".into()));
        }
        Ok(Some((state, uuid)))
    }

    /// Writes changed rows, by the tables of [`TABLES`]. Durable on return; all of it or nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`]. Nothing more may be saved after one: the rows given are lost to it.
    pub fn save(&self, log: [u8; 16], applied: Lsn, tables: &[Vec<Row>]) -> Result<(), StoreError> {
        let mut transaction = self.db.begin_write().map_err(database)?;
        transaction.set_durability(Durability::Immediate).map_err(database)?;
        transaction.set_two_phase_commit(true);
        for (name, rows) in TABLES.iter().zip(tables) {
            let mut table = transaction.open_table(table(name)).map_err(database)?;
            for (key, value) in rows {
                match value {
                    Some(value) => drop(table.insert(key.as_slice(), value.as_slice()).map_err(database)?),
                    None => drop(table.remove(key.as_slice()).map_err(database)?),
                }
            }
        }
        let mut meta = transaction.open_table(META).map_err(database)?;
        meta.insert("format", FORMAT.to_le_bytes().as_slice()).map_err(database)?;
        meta.insert("log", log.as_slice()).map_err(database)?;
        meta.insert("applied", applied.to_le_bytes().as_slice()).map_err(database)?;
        drop(meta);
        transaction.commit().map_err(database)
    }
}

fn table(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::entry::Change;
    use wire::{ClusterId, RequestId};

    fn apply(state: &mut State, change: Change) {
        let entry = state.stamp(change, 1000);
        state.apply(state.applied() + 1, &entry).unwrap();
    }

    #[test]
    fn a_saved_state_loads_back_equal_also_after_rows_went_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.db");
        let mut state = State::default();
        apply(&mut state, Change::Found { cluster: ClusterId([5; 16]) });
        for number in 1..50 {
            let request = RequestId { client: [1; 16], number };
            apply(&mut state, Change::Create { request, path: format!("/d{}/f{number}", number % 7), replicas: 3 });
        }
        let store = Store::open(&path).unwrap();
        assert!(store.load().unwrap().is_none());
        store.save([9; 16], state.applied(), &state.take_dirty()).unwrap();
        let request = RequestId { client: [1; 16], number: 50 };
        apply(&mut state, Change::Delete { request, path: "/d3".into(), recursive: true });
        store.save([9; 16], state.applied(), &state.take_dirty()).unwrap();
        drop(store);
        let (loaded, uuid) = Store::open(&path).unwrap().load().unwrap().unwrap();
        assert_eq!(uuid, [9; 16]);
        assert!(loaded.dump() == state.dump());
    }

    #[test]
    fn what_is_no_database_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.db");
        std::fs::write(&path, vec![0x5a; 10_000]).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Database(_))));
        assert_eq!(std::fs::read(&path).unwrap(), vec![0x5a; 10_000]);
    }
}
