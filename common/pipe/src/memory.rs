//! Where the system has no memory left, a Rust program aborts. Ours end with a sentence and exit code 2, as after any error.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Write, stderr};
use std::sync::OnceLock;
use std::{fs, path::Path, thread, time::Duration};

use signal_hook::low_level::exit;

use crate::scratch;

/// Every tool's `#[global_allocator]`: `A`, whose failures end the program.
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

/// Bytes of memory of this machine, or of the container or the job if that may use less; 0 where the system does not say.
pub fn of_machine() -> usize {
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let limit = |group: &Path| {
        let file = Path::new("/sys/fs/cgroup").join(group.strip_prefix("/").unwrap_or(group)).join("memory.max");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    let limits = Path::new(group).ancestors().filter_map(limit);
    limits.fold(bytes_in("/proc/meminfo", "MemTotal:"), usize::min)
}

/// Bytes of memory that this program holds; 0 where the system does not say.
pub fn resident() -> usize {
    bytes_in("/proc/self/status", "VmRSS:")
}

/// The size behind `name` in a table of the kernel, which counts in KiB.
fn bytes_in(table: &str, name: &str) -> usize {
    let table = fs::read_to_string(table).unwrap_or_default();
    let size = table.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok());
    size.unwrap_or(0) * 1024
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
