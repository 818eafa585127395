//! Aligned memory for the backends that bring none: power-of-two classes from 4 KiB to 2 MiB, kept
//! when free.

#![allow(unsafe_code, reason = "memory shared with the kernel")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use super::pool::{BUF_LEN_MAX, PAGE};

const CLASSES: usize = (BUF_LEN_MAX / PAGE).ilog2() as usize + 1;

/// The memory of one shard; clones are handles.
#[derive(Clone)]
pub(super) struct Slab(Rc<Shelves>);

struct Shelves {
    free: RefCell<[Vec<NonNull<u8>>; CLASSES]>,
    kept: Cell<usize>,
    kept_max: usize,
}

/// A block of memory, initialised, aligned to pages; goes back to its slab when dropped.
pub(super) struct Block {
    memory: NonNull<u8>,
    class: usize,
    slab: Slab,
}

impl Slab {
    /// Keeps at most `kept_max` free bytes.
    pub(super) fn new(kept_max: usize) -> Self {
        Self(Rc::new(Shelves { free: RefCell::default(), kept: Cell::new(0), kept_max }))
    }

    /// At least `len` bytes, content unspecified.
    pub(super) fn take(&self, len: usize) -> Block {
        let class = len.div_ceil(PAGE).max(1).next_power_of_two().ilog2() as usize;
        assert!(class < CLASSES, "a buffer has at most 2 MiB, not {len} bytes");
        let shelf = self.0.free.borrow_mut()[class].pop();
        let memory = match shelf {
            Some(memory) => {
                self.0.kept.set(self.0.kept.get() - layout(class).size());
                memory
            }
            // SAFETY: the layout has a size.
            None => NonNull::new(unsafe { alloc_zeroed(layout(class)) })
                .unwrap_or_else(|| handle_alloc_error(layout(class))),
        };
        Block { memory, class, slab: self.clone() }
    }
}

fn layout(class: usize) -> Layout {
    match Layout::from_size_align(PAGE << class, PAGE) {
        Ok(layout) => layout,
        Err(_) => unreachable!("4 KiB to 2 MiB, aligned to 4 KiB"),
    }
}

impl Block {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the block owns its memory, which is initialised; nothing writes to it while it is
        // shared: a read in flight owns the block.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), layout(self.class).size()) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and we have it alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), layout(self.class).size()) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let shelves = &self.slab.0;
        let size = layout(self.class).size();
        if shelves.kept.get() + size <= shelves.kept_max {
            shelves.kept.set(shelves.kept.get() + size);
            shelves.free.borrow_mut()[self.class].push(self.memory);
        } else {
            // SAFETY: allocated with this layout, and this was its owner.
            unsafe { dealloc(self.memory.as_ptr(), layout(self.class)) };
        }
    }
}

impl Drop for Shelves {
    fn drop(&mut self) {
        for (class, shelf) in self.free.get_mut().iter_mut().enumerate() {
            for memory in shelf.drain(..) {
                // SAFETY: allocated with this layout; what lies on a shelf has no other owner.
                unsafe { dealloc(memory.as_ptr(), layout(class)) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_kept_up_to_the_limit_and_used_again() {
        let slab = Slab::new(8 * PAGE);
        let first = slab.take(3 * PAGE);
        let second = slab.take(3 * PAGE);
        let third = slab.take(PAGE);
        assert_eq!((first.bytes().len(), third.bytes().len()), (4 * PAGE, PAGE));
        drop((second, third));
        assert_eq!(slab.0.kept.get(), 5 * PAGE);
        drop(first);
        assert_eq!(slab.0.kept.get(), 5 * PAGE, "over the limit: given back");
        let mut again = slab.take(4 * PAGE);
        again.bytes_mut().fill(1);
        assert_eq!(slab.0.kept.get(), PAGE);
        assert!(again.bytes().iter().all(|byte| *byte == 1));
    }
}
