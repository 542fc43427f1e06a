//! The allocator of the unit tests: counts what a thread allocates, as a GPU's pool would.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn add(bytes: i64) {
    if COUNTS.get() {
        LIVE.set(LIVE.get() + bytes);
        PEAK.set(PEAK.get().max(LIVE.get()));
    }
}

// SAFETY: the system's allocator does the work; the counters allocate nothing.
#[expect(unsafe_code, reason = "see the safety comment")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: handed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: handed on as it came.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        add(-(layout.size() as i64));
        // SAFETY: handed on as it came.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size as i64 - layout.size() as i64);
        // SAFETY: handed on as it came.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Counts from 0 what this thread allocates while `body` runs.
pub(super) fn counted<R>(body: impl FnOnce() -> R) -> R {
    LIVE.set(0);
    PEAK.set(0);
    COUNTS.set(true);
    let result = body();
    COUNTS.set(false);
    result
}

/// Runs `body` without counting: what the emulator allocates and a GPU would not.
pub(in super::super) fn uncounted<R>(body: impl FnOnce() -> R) -> R {
    let counts = COUNTS.replace(false);
    let result = body();
    COUNTS.set(counts);
    result
}

/// Bytes held now.
pub(super) fn live() -> i64 {
    LIVE.get()
}

/// Most bytes held at once since the last call; counts anew from what is held now.
pub(super) fn take_peak() -> i64 {
    PEAK.replace(LIVE.get())
}
