//! Errors and panics as statuses and texts.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

use t3s_core::{
    ComponentError, TableError,
    plugin::abi::{T3S_ERROR, T3S_OK, T3S_PANIC, T3sText},
};

/// What a call says when it fails.
pub(super) struct Fault(String);

impl Fault {
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl From<ComponentError> for Fault {
    fn from(error: ComponentError) -> Self {
        match error {
            ComponentError::Options { key, message } => Self(format!("{key}\t{message}")),
            other => Self(other.to_string()),
        }
    }
}

impl From<TableError> for Fault {
    fn from(error: TableError) -> Self {
        Self(error.to_string())
    }
}

thread_local! {
    /// What the last panic of this thread said, and where.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `body`; a panic ends here.
pub(super) fn guarded(error: *mut T3sText, body: impl FnOnce() -> Result<(), Fault>) -> i32 {
    remember_panics();
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => T3S_OK,
        Ok(Err(Fault(message))) => {
            set_text(error, message);
            T3S_ERROR
        }
        Err(payload) => {
            // Dropping a payload may panic again, and nothing may leave here.
            std::mem::forget(payload);
            set_text(error, PANIC.take());
            T3S_PANIC
        }
    }
}

/// Notes message and place instead of printing them. A library links its own copy of std, so the
/// host's hook is untouched; and a program that links the plugin statically never comes here.
fn remember_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let payload = info.payload();
            let said = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("(no message)");
            let text = match info.location() {
                Some(place) => format!("{}:{}: {said}", place.file(), place.line()),
                None => said.to_owned(),
            };
            PANIC.set(text);
        }));
    });
}

/// Writes `text` to `place`, if there is one; [`free_text`] takes it back.
pub(super) fn set_text(place: *mut T3sText, text: String) {
    if place.is_null() {
        return;
    }
    let bytes = text.into_bytes().into_boxed_slice();
    let len = bytes.len();
    let data = Box::into_raw(bytes).cast::<u8>();
    // SAFETY: not null, so a place of the host's.
    unsafe { place.write(T3sText { data, len }) };
}

/// Takes back a text of [`set_text`].
pub(super) unsafe extern "C" fn free_text(text: T3sText) {
    if !text.data.is_null() {
        let bytes = std::ptr::slice_from_raw_parts_mut(text.data, text.len);
        // SAFETY: the host gives back what `set_text` gave it, once.
        drop(unsafe { Box::from_raw(bytes) });
    }
}
