//! mimalloc, told to keep the memory it has.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// `mi_option_purge_delay` of mimalloc.h, the same number in its versions 2 and 3; the bindings have
/// no name for it.
const PURGE_DELAY: mi_option_t = 15;

/// Freed pages stay with the process instead of going back to the system. A training step frees and
/// allocates the same activations again and again; without this the kernel zeroes them every time.
pub fn keep_pages() {
    // SAFETY: sets one number inside the allocator, before any thread is started; an option that
    // does not exist would be ignored.
    #[expect(unsafe_code, reason = "see the safety comment")]
    unsafe {
        mi_option_set(PURGE_DELAY, -1);
    }
}
