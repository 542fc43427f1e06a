//! The host's columns as slices.

use t3s_core::{
    TokenView,
    plugin::abi::{T3sTokens, slice},
    table::SketchView,
};

use super::catch::Fault;

/// A view of the host's tokens, and the context that came with them.
pub(super) struct Lent<'a> {
    pub tokens: TokenView<'a>,
    pub seed: u64,
    pub step: u64,
    pub current_logp: Option<&'a [f32]>,
}

impl<'a> Lent<'a> {
    /// Borrows every column; copies none.
    ///
    /// # Safety
    /// Pointers of `tokens` are null or point to what their lengths say, which nobody writes
    /// during `'a`; `eligible` holds zeros and ones.
    pub unsafe fn new(tokens: &'a T3sTokens) -> Result<Self, Fault> {
        if tokens.size < size_of::<T3sTokens>() {
            return Err(Fault::new("the host's token table is of an older version"));
        }
        let (n, examples) = (tokens.n_tokens, tokens.n_examples);
        // SAFETY: the caller's promise, for each of them.
        let mut view = unsafe {
            TokenView::new(
                given(tokens.example_ids, examples, "example_ids")?,
                given(tokens.offsets, examples + 1, "offsets")?,
                given(tokens.token_ids, n, "token_ids")?,
                given(tokens.positions, n, "positions")?,
                given(tokens.eligible.cast::<bool>(), n, "eligible")?,
            )?
        };
        // SAFETY: as above.
        for column in unsafe { given(tokens.columns, tokens.n_columns, "columns")? } {
            // SAFETY: as above.
            let name = unsafe { column.name.bytes() }.unwrap_or_default();
            let name = std::str::from_utf8(name)
                .map_err(|_| Fault::new("the host named a column in no UTF-8"))?;
            if column.len != n || column.stride != column.width {
                return Err(Fault::new(format!(
                    "the host's column {name:?} is not dense"
                )));
            }
            // SAFETY: as above.
            let values = unsafe { given(column.data, n * column.width, name)? };
            match column.width {
                1 => view.push(name, values)?,
                width => view.push_sketch(name, SketchView { width, values })?,
            }
        }
        let current_logp = if tokens.current_logp.is_null() {
            None
        } else {
            // SAFETY: as above.
            Some(unsafe { given(tokens.current_logp, n, "current_logp")? })
        };
        Ok(Self {
            tokens: view,
            seed: tokens.seed,
            step: tokens.step,
            current_logp,
        })
    }
}

/// # Safety
/// That of [`slice`].
pub(super) unsafe fn given<'a, T>(
    data: *const T,
    len: usize,
    what: &str,
) -> Result<&'a [T], Fault> {
    // SAFETY: the caller's promise.
    unsafe { slice(data, len) }.ok_or_else(|| Fault::new(format!("the host gave no {what}")))
}

/// Where the host wants `n` numbers.
///
/// # Safety
/// `out` is null or points to `n` floats that only the caller uses during `'a`.
pub(super) unsafe fn room<'a, T>(out: *mut T, n: usize) -> Result<&'a mut [T], Fault> {
    if n == 0 {
        return Ok(&mut []);
    }
    if out.is_null() {
        return Err(Fault::new("the host gave no room for the answer"));
    }
    // SAFETY: not null; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(out, n) })
}
