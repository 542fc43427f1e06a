//! Calls into a plugin: statuses, texts, and views of the host's columns.

use std::{ffi::c_void, marker::PhantomData};

use super::abi::{
    T3S_ERROR, T3S_OK, T3S_PANIC, T3sColumn, T3sComponent, T3sStr, T3sText, T3sTokens,
};
use crate::{ComponentError, SelectContext, TokenView};

/// A longer text than this is a wrong length, not a text.
const LONGEST_TEXT: usize = 1 << 28;

/// The part of a plugin that every one of its components needs.
#[derive(Clone, Copy)]
pub(super) struct Library {
    /// Gives a text back.
    pub free_text: unsafe extern "C" fn(T3sText),
    /// Minor version of the interface that it was built with.
    pub minor: u32,
}

impl Library {
    /// The text `text`, given back to the plugin.
    ///
    /// # Errors
    /// When it is no text.
    pub fn take(&self, text: T3sText) -> Result<String, ComponentError> {
        if text.data.is_null() {
            return Ok(String::new());
        }
        if text.len > LONGEST_TEXT {
            let message = format!("the plugin gave a text of {} bytes", text.len);
            return Err(ComponentError::Failed(message));
        }
        // SAFETY: the plugin says that it has written `len` bytes there; they are its own until
        // `free_text` below, and have been copied by then.
        let bytes = unsafe { std::slice::from_raw_parts(text.data, text.len) }.to_vec();
        // SAFETY: a text of this plugin, not null, given back once.
        unsafe { (self.free_text)(text) };
        String::from_utf8(bytes)
            .map_err(|_| ComponentError::Failed("the plugin gave a text that is not UTF-8".into()))
    }

    /// What a call with `status` and the error text `error` came to.
    ///
    /// # Errors
    /// The plugin's own, under the name of the component `who`.
    pub fn outcome(&self, who: &str, status: i32, error: T3sText) -> Result<(), ComponentError> {
        let said = self.take(error)?;
        let message = match (status, said.is_empty()) {
            (T3S_OK, _) => return Ok(()),
            (T3S_ERROR, false) => said,
            (T3S_ERROR, true) => format!("{who} failed and did not say why"),
            (T3S_PANIC, _) => format!("{who} panicked: {said}"),
            (other, _) => format!("{who} returned the status {other}, which means nothing: {said}"),
        };
        Err(ComponentError::Failed(message))
    }
}

/// An instance of a component; destroyed with it.
pub(super) struct Instance {
    pub library: Library,
    pub component: &'static T3sComponent,
    /// E.g. `strategy "x"`, for messages.
    pub who: String,
    pub pointer: *mut c_void,
}

// SAFETY: the interface asks plugins for functions that may be called from several threads at once
// on one instance; the pointer is only ever handed to them.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(destroy) = self.component.destroy {
            // SAFETY: made by this component's `create`, and not used after this.
            unsafe { destroy(self.pointer) };
        }
    }
}

impl Instance {
    /// Makes an instance of `component` from `options`.
    ///
    /// # Errors
    /// When the plugin refuses the options or gives no instance.
    pub fn create(
        library: Library,
        component: &'static T3sComponent,
        who: &str,
        options: &toml::Table,
    ) -> Result<Self, ComponentError> {
        let options = to_json(options)?;
        let create = component.create.ok_or_else(|| missing(who, "create"))?;
        let (mut pointer, mut error) = (std::ptr::null_mut(), T3sText::NONE);
        // SAFETY: the arguments live until the call returns, as the interface says.
        let status = unsafe {
            create(
                component.context,
                T3sStr::new(&options),
                &mut pointer,
                &mut error,
            )
        };
        library
            .outcome(who, status, error)
            .map_err(|error| match (status, error) {
                (T3S_ERROR, ComponentError::Failed(message)) => refused(message),
                (_, error) => error,
            })?;
        if pointer.is_null() {
            let message = format!("{who} was made and is null");
            return Err(ComponentError::Failed(message));
        }
        Ok(Self {
            library,
            component,
            who: who.to_owned(),
            pointer,
        })
    }

    /// Asks it for its description.
    ///
    /// # Errors
    /// The plugin's own, and when the answer cannot be read as a `T`.
    pub fn describe<T: serde::de::DeserializeOwned>(&self) -> Result<T, ComponentError> {
        let call = self.component.describe;
        let call = call.ok_or_else(|| missing(&self.who, "describe"))?;
        let (mut answer, mut error) = (T3sText::NONE, T3sText::NONE);
        // SAFETY: a living instance of this component; the other arguments outlive the call.
        let status = unsafe { call(self.pointer, &mut answer, &mut error) };
        let answer = self.library.take(answer);
        self.library.outcome(&self.who, status, error)?;
        from_json(&self.who, "description", &answer?)
    }

    /// Lets it write one number per token into `out`.
    ///
    /// # Errors
    /// The plugin's own, and when the lengths of the arguments disagree.
    pub fn run(
        &self,
        tokens: &TokenView<'_>,
        cx: Option<&SelectContext<'_>>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        if out.len() != tokens.n_tokens() {
            let (found, tokens) = (out.len(), tokens.n_tokens());
            let message = format!("room for {found} numbers of {tokens} tokens");
            return Err(ComponentError::Failed(message));
        }
        let call = self
            .component
            .run
            .ok_or_else(|| missing(&self.who, "run"))?;
        if let Some(current) = cx.and_then(|cx| cx.current_logp)
            && current.len() != tokens.n_tokens()
        {
            let (found, tokens) = (current.len(), tokens.n_tokens());
            let message = format!("{found} log-probabilities of the step for {tokens} tokens");
            return Err(ComponentError::Failed(message));
        }
        let columns = columns_of(tokens);
        let tokens = lend(tokens, &columns, cx);
        let mut error = T3sText::NONE;
        // SAFETY: `tokens` borrows columns of the lengths it says, `out` has `n` elements, and all
        // of them outlive the call. A C plugin that writes elsewhere is beyond checking.
        let status = unsafe {
            call(
                self.pointer,
                &raw const tokens.0,
                out.as_mut_ptr(),
                out.len(),
                &mut error,
            )
        };
        self.library.outcome(&self.who, status, error)
    }
}

/// An error that lacks a function.
pub(super) fn missing(who: &str, function: &str) -> ComponentError {
    ComponentError::Failed(format!("{who} has no function {function}"))
}

/// Refused options: a Rust plugin says `key<TAB>message`, so that a plan can show the line.
fn refused(message: String) -> ComponentError {
    match message.split_once('\t') {
        Some((key, message)) => ComponentError::option(key, message),
        None => ComponentError::option("", message),
    }
}

/// A JSON object of options.
///
/// # Errors
/// When they hold a date, which JSON lacks, or a number that is none.
pub(super) fn to_json(options: &toml::Table) -> Result<String, ComponentError> {
    for (key, value) in options {
        let fault = unspeakable(value);
        if let Some(what) = fault {
            let message = format!("{what} cannot be handed to a plugin; write a number or a text");
            return Err(ComponentError::option(key, message));
        }
    }
    serde_json::to_string(options)
        .map_err(|error| ComponentError::Failed(format!("options as JSON: {error}")))
}

fn unspeakable(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::Datetime(date) => Some(format!("the date {date}")),
        toml::Value::Float(number) if !number.is_finite() => Some(number.to_string()),
        toml::Value::Array(values) => values.iter().find_map(unspeakable),
        toml::Value::Table(table) => table.iter().find_map(|(_, value)| unspeakable(value)),
        _ => None,
    }
}

/// An answer of the component `who`.
///
/// # Errors
/// When it is not JSON of that shape; says which `what` it is.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(
    who: &str,
    what: &str,
    text: &str,
) -> Result<T, ComponentError> {
    serde_json::from_str(text)
        .map_err(|error| ComponentError::Failed(format!("the {what} of {who}: {error}")))
}

/// [`T3sTokens`] that cannot outlive what it points to.
struct Lent<'a>(T3sTokens, PhantomData<&'a [f32]>);

fn columns_of(tokens: &TokenView<'_>) -> Vec<T3sColumn> {
    let n = tokens.n_tokens();
    let column = |name: &str, data: &[f32], width| T3sColumn {
        name: T3sStr::new(name),
        data: data.as_ptr(),
        len: n,
        stride: width,
        width,
    };
    let scalars = tokens.columns().iter().map(|(name, v)| column(name, v, 1));
    let sketches = tokens.sketches().iter();
    let sketches = sketches.map(|(name, sketch)| column(name, sketch.values, sketch.width));
    scalars.chain(sketches).collect()
}

fn lend<'a>(
    tokens: &TokenView<'a>,
    columns: &'a [T3sColumn],
    cx: Option<&SelectContext<'a>>,
) -> Lent<'a> {
    let current = cx.and_then(|cx| cx.current_logp);
    let lent = T3sTokens {
        size: size_of::<T3sTokens>(),
        n_tokens: tokens.n_tokens(),
        n_examples: tokens.n_examples(),
        example_ids: tokens.example_ids().as_ptr(),
        offsets: tokens.offsets().as_ptr(),
        token_ids: tokens.token_ids().as_ptr(),
        positions: tokens.positions().as_ptr(),
        // A bool is a byte, 0 or 1.
        eligible: tokens.eligible().as_ptr().cast(),
        columns: columns.as_ptr(),
        n_columns: columns.len(),
        seed: cx.map_or(0, |cx| cx.seed),
        step: cx.map_or(0, |cx| cx.step),
        current_logp: current.map_or(std::ptr::null(), <[f32]>::as_ptr),
    };
    Lent(lent, PhantomData)
}
