//! Parallel writes to pieces of rows that no slice splitting can express: heads of `[rows, heads *
//! head_dim]`.

use std::marker::PhantomData;

/// A `[rows, width]` buffer whose pieces are handed out to tasks.
pub(crate) struct DisjointRows<'a> {
    start: *mut f32,
    rows: usize,
    width: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from an exclusive borrow that lives as long as `self`, and `piece`
// obliges its callers to never ask for the same elements from two tasks.
#[expect(unsafe_code, reason = "see the safety comment")]
unsafe impl Sync for DisjointRows<'_> {}

impl<'a> DisjointRows<'a> {
    /// Takes the buffer for as long as tasks write to it.
    pub(crate) fn new(values: &'a mut [f32], width: usize) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width));
        Self {
            start: values.as_mut_ptr(),
            rows: values.len() / width,
            width,
            owner: PhantomData,
        }
    }

    /// Elements `column..column + len` of `row`.
    ///
    /// # Safety
    /// No two live pieces may overlap: concurrent tasks ask for different rows or different columns.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "the caller's obligation")]
    pub(crate) unsafe fn piece(&self, row: usize, column: usize, len: usize) -> &mut [f32] {
        assert!(row < self.rows && column + len <= self.width);
        // SAFETY: inside the buffer by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.width + column), len) }
    }
}
