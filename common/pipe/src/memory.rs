//! Where the system has no memory left, a Rust program aborts. Ours end with a sentence and exit code 2, as after any error.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Write, stderr};
use std::sync::OnceLock;
use std::{thread, time::Duration};

use signal_hook::low_level::exit;

use crate::scratch;

/// What every tool sets as its `#[global_allocator]`: `A`, whose failures end the program.
pub struct Memory<A = System>(pub A);

/// Bytes that no tool needs in one piece. A caller that asks for as much read the size in a damaged file, and says so itself.
const ABSURD: usize = 1 << 36;

/// The name of the program, for its last sentence.
static TOOL: OnceLock<&str> = OnceLock::new();

thread_local! {
    /// Whether this thread is ending the program, which may ask for memory again.
    static ENDS: Cell<bool> = const { Cell::new(false) };
}

/// Notes the program's name.
pub(crate) fn of(tool: &'static str) {
    let _ = TOOL.set(tool);
}

fn or_end(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() && size < ABSURD {
        end(size);
    }
    block
}

#[cold]
fn end(size: usize) -> ! {
    static FIRST: OnceLock<()> = OnceLock::new();
    if ENDS.replace(true) {
        exit(2); // no memory even for the end
    }
    if FIRST.set(()).is_err() {
        thread::sleep(Duration::from_secs(10)); // another thread ends the program
        exit(2);
    }
    let tool = TOOL.get().unwrap_or(&"memory");
    let _ = writeln!(
        stderr(),
        "{tool}: the system has no memory left ({size} bytes more were needed); fewer --threads or smaller batches need less, \
         or see `ulimit -v` and the other programs that run"
    );
    scratch::clear();
    exit(2)
}

// SAFETY: blocks are those of the allocator inside, and every promise of the caller is handed on.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Memory<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        or_end(unsafe { self.0.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        or_end(unsafe { self.0.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        or_end(unsafe { self.0.realloc(block, layout, size) }, size)
    }
}
