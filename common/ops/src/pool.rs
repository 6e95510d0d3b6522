//! Memory for large tensors. Every operation allocates its result. A block from the system costs a page fault per four
//! kilobytes and a pass of zeros; so blocks of some megabytes and more are kept for the next operation here, on large pages.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// The allocator for programs that run networks, which set it as their `#[global_allocator]`. Blocks below 4 MiB are the
/// system allocator's. A training step of 211 million weights takes four percent more without it, and half of the page faults.
pub struct Pool;

impl Pool {
    /// Tells glibc to keep freed blocks below [`SMALLEST`] too, for which a program calls it once at its start: else glibc
    /// returns many of them to the system, and the page faults cost a mini training step five percent.
    pub fn keep_small_blocks(&self) {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: mallopt only sets two limits of the allocator.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT as i32);
        }
    }
}

/// Bytes of the smallest block that is kept here.
const SMALLEST: usize = 4 << 20;
/// Bytes of unused blocks that are kept at most.
const KEPT: usize = 512 << 20;
const PAGE: usize = 2 << 20;

/// Unused blocks, (size, address), the latest last.
static UNUSED: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// `size` rounded up to one of eight sizes per power of two, so that blocks that nearly fit are used again.
fn class(size: usize) -> usize {
    let step = (size.next_power_of_two() / 16).max(PAGE / 8);
    size.next_multiple_of(step)
}

fn unused<R>(f: impl FnOnce(&mut Vec<(usize, usize)>) -> R) -> R {
    f(&mut UNUSED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// An unused block or a new one, and whether it holds zeros.
fn take(size: usize) -> (*mut u8, bool) {
    let found = unused(|all| all.iter().rposition(|(s, _)| *s == size).map(|i| all.remove(i)));
    match found {
        Some((_, address)) => (ptr::with_exposed_provenance_mut(address), false),
        None => (map(size), true),
    }
}

/// Keeps a block for later use, and returns the oldest ones to the system where there are too many.
fn keep(block: *mut u8, size: usize) {
    let mut dropped = vec![];
    unused(|all| {
        all.push((size, block.expose_provenance()));
        let mut bytes: usize = all.iter().map(|(s, _)| s).sum();
        while bytes > KEPT {
            let oldest = all.remove(0);
            bytes -= oldest.0;
            dropped.push(oldest);
        }
    });
    for (size, address) in dropped {
        unmap(ptr::with_exposed_provenance_mut(address), size);
    }
}

/// A new block of zeros that begins at a large page.
fn map(size: usize) -> *mut u8 {
    // SAFETY: a private anonymous mapping that nothing else uses; what lies outside the aligned block is returned.
    unsafe {
        let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let all = libc::mmap(ptr::null_mut(), size + PAGE, read_write, private, -1, 0);
        if all == libc::MAP_FAILED {
            return ptr::null_mut();
        }
        let all = all.cast::<u8>();
        let before = all.align_offset(PAGE);
        if before > 0 {
            libc::munmap(all.cast(), before);
        }
        let block = all.add(before);
        if before < PAGE {
            libc::munmap(block.add(size).cast(), PAGE - before);
        }
        #[cfg(target_os = "linux")]
        libc::madvise(block.cast(), size, libc::MADV_HUGEPAGE);
        block
    }
}

fn unmap(block: *mut u8, size: usize) {
    // SAFETY: `block` came from `map` with this size, and nothing uses it any more.
    unsafe {
        libc::munmap(block.cast(), size);
    }
}

fn is_large(layout: &Layout) -> bool {
    layout.size() >= SMALLEST && layout.align() <= PAGE
}

// SAFETY: a block is either in the list of unused ones or its owner's, never both, and is as large as its class.
unsafe impl GlobalAlloc for Pool {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(&layout) {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        }
        take(class(layout.size())).0
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(&layout) {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let (block, zeros) = take(class(layout.size()));
        if !zeros {
            // SAFETY: the block is at least this long.
            unsafe { ptr::write_bytes(block, 0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(&layout) {
            keep(block, class(layout.size()));
        } else {
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(block, layout) }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: alignment stays, and the caller promises that the new size does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(&layout), is_large(&new)) {
            // SAFETY: the caller's promise.
            (false, false) => unsafe { System.realloc(block, layout, size) },
            (true, true) if class(layout.size()) == class(size) => block,
            _ => {
                // SAFETY: both blocks are as long as what is copied, and the old one is given up after it.
                unsafe {
                    let moved = self.alloc(new);
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(block, moved, size.min(layout.size()));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static POOL: Pool = Pool;

    #[test]
    fn blocks_come_back_as_zeros_and_keep_what_they_held_when_they_grow() {
        for n in [SMALLEST / 4, SMALLEST / 4 + 12345, 3 * SMALLEST] {
            let mut first = vec![7f32; n];
            first.resize(2 * n, 8.0);
            assert!(first[..n].iter().all(|v| *v == 7.0) && first[n..].iter().all(|v| *v == 8.0));
            drop(first);
            assert!(vec![0f32; 2 * n].iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn a_class_is_at_least_as_large_and_hardly_larger() {
        for size in [SMALLEST, SMALLEST + 1, 10_000_000, 117_964_800, 1 << 30] {
            assert!(class(size) >= size && class(size) <= size + size / 8 + PAGE / 8);
            assert_eq!(class(class(size)), class(size));
        }
    }
}
