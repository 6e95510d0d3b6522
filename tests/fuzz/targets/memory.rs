//! An allocator that counts, so that a file that asks for too much memory is found whatever the machine has.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Write,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The system's allocator, counted. It refuses what goes beyond [`refuse_above`].
pub struct Counted;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From here on no more than `bytes` above what is in use now are given. A program whose allocation is refused aborts.
pub fn refuse_above(bytes: usize) {
    MOST.store(NOW.load(Relaxed).saturating_add(bytes), Relaxed);
}

/// Counts `bytes`; whether they may be given.
fn take(bytes: usize) -> bool {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    let given = now <= MOST.load(Relaxed);
    if !given {
        give_back(bytes);
        // Nothing may be allocated here, and the program is about to abort.
        let _ = std::io::stderr().write_all(b"an input asks for more memory than it may take\n");
    }
    given
}

fn give_back(bytes: usize) {
    NOW.fetch_sub(bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came, or gives null, which is how an allocation is refused.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if take(layout.size()) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if take(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() && !take(size - layout.size()) {
            return std::ptr::null_mut();
        }
        if size < layout.size() {
            give_back(layout.size() - size);
        }
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        give_back(layout.size());
        unsafe { System.dealloc(old, layout) }
    }
}
