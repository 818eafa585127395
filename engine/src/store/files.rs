//! Open slot files: opening is many system calls, and descriptors are few.

use std::collections::BTreeMap;

use super::load::Wanted;
use super::shard::Inner;
use crate::runtime::{FileId, Open, Runtime};

/// Slot files that a shard keeps open at most, beside those of chunks that take appends.
const FILES_MAX: usize = 512;

/// The files used last.
pub(crate) struct Files<F> {
    open: BTreeMap<u32, (F, u64)>,
    by_use: BTreeMap<u64, u32>,
    clock: u64,
}

impl<F> Default for Files<F> {
    fn default() -> Self {
        Self { open: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0 }
    }
}

impl<F: Clone> Files<F> {
    fn get(&mut self, slot: u32) -> Option<F> {
        let recent = self.clock.saturating_sub(self.open.len() as u64 / 2);
        let (file, used) = self.open.get_mut(&slot)?;
        if *used > recent {
            return Some(file.clone()); // among the half used last
        }
        self.by_use.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.by_use.insert(self.clock, slot);
        Some(file.clone())
    }

    fn insert(&mut self, slot: u32, file: F) {
        self.clock += 1;
        if let Some((_, used)) = self.open.insert(slot, (file, self.clock)) {
            self.by_use.remove(&used);
        }
        self.by_use.insert(self.clock, slot);
        while self.open.len() > FILES_MAX {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            self.open.remove(&oldest);
        }
    }
}

impl<R: Runtime> Inner<R> {
    /// The slot's file.
    pub(crate) async fn file(&self, slot: u32) -> std::io::Result<R::File> {
        loop {
            let known = self.files.borrow_mut().get(slot);
            if let Some(file) = known {
                return Ok(file);
            }
            // Who is not the first to want it waits for the first.
            let Some(_first) = self.once(Wanted::File(slot)).await else { continue };
            let file = self.io.rt.open(&self.shared.root, FileId::Slot(slot), Open::Existing).await?;
            self.files.borrow_mut().insert(slot, file.clone());
            return Ok(file);
        }
    }

    /// Keeps a file that was just made.
    pub(crate) fn keep_file(&self, slot: u32, file: R::File) {
        self.files.borrow_mut().insert(slot, file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_used_last_stay_open() {
        let mut files = Files::default();
        for slot in 0..u32::try_from(FILES_MAX).unwrap() {
            files.insert(slot, slot);
        }
        assert_eq!(files.get(0), Some(0));
        files.insert(9999, 9999);
        assert_eq!((files.get(0), files.get(1), files.get(9999)), (Some(0), None, Some(9999)));
        assert_eq!(files.open.len(), FILES_MAX);
        assert_eq!(files.by_use.len(), FILES_MAX);
    }
}
