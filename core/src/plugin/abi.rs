//! The C interface between T3S and a plugin, version 1.2. `plugins/include/t3s_plugin.h` is made from
//! this file, so its comments speak to C programmers too.
//!
//! A plugin is a shared library that exports one data symbol, `t3s_plugin`, of type [`T3sPlugin`].
//! T3S reads it before it calls anything. Every call returns a status; what a call writes goes into
//! memory of the host; texts that a plugin makes are given back to its `free_text`. Nothing of the
//! host's memory may be kept after a call, and no exception or panic may leave one.
//!
//! Structures grow at their end only, and each begins with its size: that is a minor version. Any
//! other change is a major one.

#![allow(missing_debug_implementations, reason = "pointers into another image")]

use std::ffi::c_void;

/// The first field of every [`T3sPlugin`]: `T3SPLUG1` as bytes.
pub const T3S_MAGIC: u64 = 0x3147_554C_5053_3354;
/// A plugin loads where this is equal.
pub const T3S_ABI_MAJOR: u32 = 1;
/// A plugin loads where its own is not larger. 0: signals and strategies. 1: model adapters, whose
/// part of the interface is not frozen yet. 2: objectives say what a weight means, and are told of
/// strata and of corruptions that the data fixes.
pub const T3S_ABI_MINOR: u32 = 2;

/// [`T3sPlugin::flags`]: built so that a fault in it ends the host; it is refused.
pub const T3S_FLAG_ABORTS: u32 = 1;

/// [`T3sComponent::kind`]: observables to one score per token.
pub const T3S_SIGNAL: u32 = 1;
/// [`T3sComponent::kind`]: scores to one weight per token.
pub const T3S_STRATEGY: u32 = 2;
/// [`T3sComponent::kind`]: a model family.
pub const T3S_ADAPTER: u32 = 3;

/// A call did what it is for.
pub const T3S_OK: i32 = 0;
/// It did not; its error text says why.
pub const T3S_ERROR: i32 = 1;
/// A bug in the plugin was caught; its error text says where.
pub const T3S_PANIC: i32 = 2;

/// A text that belongs to someone else: UTF-8, not terminated.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct T3sStr {
    /// Its bytes; may be null where `len` is 0.
    pub data: *const u8,
    /// Their number.
    pub len: usize,
}

/// A text that a plugin has made: UTF-8. The host gives it to [`T3sPlugin::free_text`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct T3sText {
    /// Its bytes; null for no text.
    pub data: *mut u8,
    /// Their number.
    pub len: usize,
}

/// A column: `data[i * stride + k]` is float `k` of token `i`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct T3sColumn {
    /// What `needs` calls it, e.g. `logp@base`.
    pub name: T3sStr,
    /// Its floats.
    pub data: *const f32,
    /// Number of tokens.
    pub len: usize,
    /// Floats from one token to the next.
    pub stride: usize,
    /// Floats per token: 1, except for sketches.
    pub width: usize,
}

/// The tokens a component is asked about: borrowed for the time of the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct T3sTokens {
    /// `sizeof` of this structure in the host.
    pub size: usize,
    /// Number of tokens.
    pub n_tokens: usize,
    /// Number of examples.
    pub n_examples: usize,
    /// `[n_examples]`: the data's name of each example.
    pub example_ids: *const u64,
    /// `[n_examples + 1]`: tokens `offsets[e]` to `offsets[e + 1] - 1` are example `e`'s.
    pub offsets: *const u32,
    /// `[n_tokens]`: vocabulary ids.
    pub token_ids: *const u32,
    /// `[n_tokens]`: index in the example, prompt included.
    pub positions: *const u32,
    /// `[n_tokens]`: 1 where the token may be trained on, else 0. Columns mean nothing at a 0 and may
    /// be NaN there.
    pub eligible: *const u8,
    /// `[n_columns]`
    pub columns: *const T3sColumn,
    /// Number of columns.
    pub n_columns: usize,
    /// The run's seed. Draw with a hash of (seed, example id, position), never in sequence.
    pub seed: u64,
    /// The optimiser's step; 0 for a recorded selection.
    pub step: u64,
    /// `[n_tokens]`: the log-probabilities of the step under way, nats; null unless the strategy's
    /// `when` is `online`.
    pub current_logp: *const f32,
}

/// Whole examples, for [`T3sComponent::prepare`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct T3sExamples {
    /// `sizeof` of this structure in the host.
    pub size: usize,
    /// Number of tokens.
    pub n_tokens: usize,
    /// Number of examples.
    pub n_examples: usize,
    /// `[n_examples]`
    pub example_ids: *const u64,
    /// `[n_examples + 1]`
    pub offsets: *const u32,
    /// `[n_tokens]`: the clean token ids.
    pub ids: *const u32,
    /// `[n_tokens]`: 1 where the token may become a target, else 0.
    pub trainable: *const u8,
    /// `[n_tokens]`: what `weighting` says, see [`T3sComponent::objective`].
    pub weights: *const f32,
    /// The run's seed.
    pub seed: u64,
    /// How often the run has corrupted its examples before.
    pub draw: u64,
    /// Since 1.2: 0; or into how many equal parts the range of the mask ratio is cut, of which this
    /// draw takes part number `draw`.
    pub strata: u64,
    /// Since 1.2: null, or `[n_tokens]`: what is read in place of `ids` in an example whose corruption
    /// the data fixes; 0xffffffff throughout any other example.
    pub noisy_ids: *const u32,
}

/// What the model reads and what each row is trained on: buffers of the host, filled by
/// [`T3sComponent::prepare`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct T3sRows {
    /// `sizeof` of this structure in the host.
    pub size: usize,
    /// Rows there is room for.
    pub capacity: usize,
    /// To be set: rows written.
    pub n_rows: usize,
    /// `[capacity]`: token ids the model reads.
    pub input_ids: *mut u32,
    /// `[capacity]`: rotary positions.
    pub positions: *mut u32,
    /// `[capacity]`: index of the token that the row predicts, or 0xffffffff.
    pub target_pos: *mut u32,
    /// `[capacity]`: weight of the row's loss.
    pub weights: *mut f32,
    /// `[n_examples + 1]`: rows of each example.
    pub offsets: *mut u32,
}

/// One component. The functions may be called from several threads at once, also on one instance.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct T3sComponent {
    /// `sizeof` of this structure in the plugin.
    pub size: usize,
    /// `T3S_SIGNAL`, `T3S_STRATEGY` or `T3S_ADAPTER`.
    pub kind: u32,
    /// 0.
    pub reserved: u32,
    /// The name in plans, kebab-case.
    pub name: T3sStr,
    /// One line for `t3s list`.
    pub summary: T3sStr,
    /// JSON schema of the options: `{"type": "object", "properties": {...}}`.
    pub schema: T3sStr,
    /// Handed to `create` as it is; for plugins whose components share a function.
    pub context: *const c_void,
    /// Makes an instance from its options, a JSON object. An error text of the form
    /// `option<TAB>message` names the option at fault.
    pub create: Option<
        unsafe extern "C" fn(
            context: *const c_void,
            options: T3sStr,
            instance: *mut *mut c_void,
            error: *mut T3sText,
        ) -> i32,
    >,
    /// Takes an instance back.
    pub destroy: Option<unsafe extern "C" fn(instance: *mut c_void)>,
    /// What an instance reads and promises, as JSON. Signal: `{"needs": ["logp@base"]}`. Strategy:
    /// `needs`, and as far as they hold `when` (`recorded` or `online`), `scope` (`per-example` or
    /// `global`), `keeps`, `removes` (shares of the eligible tokens), `rising`, `falling` (lists of
    /// columns). Not called for adapters.
    pub describe: Option<
        unsafe extern "C" fn(
            instance: *const c_void,
            answer: *mut T3sText,
            error: *mut T3sText,
        ) -> i32,
    >,
    /// Writes one number per token into `out` (`[n]`, `n` = `n_tokens`). A strategy's weight lies in
    /// 0..=1 and is 0 where the token is not eligible. Not called for adapters.
    pub run: Option<
        unsafe extern "C" fn(
            instance: *const c_void,
            tokens: *const T3sTokens,
            out: *mut f32,
            n: usize,
            error: *mut T3sText,
        ) -> i32,
    >,
    /// Adapters, since 1.1: answers a request, both JSON. `{"ask": "claims", "config": {...}}`:
    /// `true` or `false`. `{"ask": "decoder", "config": {...}}`: a decoder's geometry and tensor
    /// names. `{"ask": "decode", "options": {...}}`: `{"kind": "left-to-right"}`. Since 1.2
    /// `{"ask": "options", "config": {...}}`: the options that the config decides,
    /// `{"objective": {...}, "decode": {...}}`.
    pub adapt: Option<
        unsafe extern "C" fn(
            instance: *const c_void,
            request: T3sStr,
            answer: *mut T3sText,
            error: *mut T3sText,
        ) -> i32,
    >,
    /// Adapters, since 1.1: makes the training objective from its options, and says as JSON which
    /// rows see which, e.g. `{"kind": "causal"}`; and, since 1.2, what the weight of a token means:
    /// `"weighting": "loss"`, as where nothing is said, what its loss is multiplied by;
    /// `"weighting": "forced-mask"`, the chance that it is masked whatever the random mask says.
    pub objective: Option<
        unsafe extern "C" fn(
            instance: *const c_void,
            options: T3sStr,
            objective: *mut *mut c_void,
            attention: *mut T3sText,
            error: *mut T3sText,
        ) -> i32,
    >,
    /// Adapters, since 1.1: corrupts, aligns and weights examples.
    pub prepare: Option<
        unsafe extern "C" fn(
            objective: *const c_void,
            examples: *const T3sExamples,
            rows: *mut T3sRows,
            error: *mut T3sText,
        ) -> i32,
    >,
    /// Adapters, since 1.1: takes an objective back.
    pub destroy_objective: Option<unsafe extern "C" fn(objective: *mut c_void)>,
}

/// What a plugin exports under the name `t3s_plugin`. The first four fields never move.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct T3sPlugin {
    /// `T3S_MAGIC`.
    pub magic: u64,
    /// `T3S_ABI_MAJOR` of the header it was built with.
    pub major: u32,
    /// `T3S_ABI_MINOR` of the header it was built with.
    pub minor: u32,
    /// `T3S_FLAG_...`
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// `sizeof` of this structure in the plugin.
    pub size: usize,
    /// What built it, for people, e.g. `t3s-plugin 0.1.0`.
    pub built_with: T3sStr,
    /// Gives the components: `count` pointers that stay valid for as long as the program runs.
    pub components: Option<
        unsafe extern "C" fn(
            components: *mut *const *const T3sComponent,
            count: *mut usize,
            error: *mut T3sText,
        ) -> i32,
    >,
    /// Takes a text back that one of the plugin's functions has made; ignores null.
    pub free_text: Option<unsafe extern "C" fn(text: T3sText)>,
}

// SAFETY: constants only; the texts and functions they point to are never written.
unsafe impl Sync for T3sPlugin {}
// SAFETY: as above.
unsafe impl Sync for T3sComponent {}
// SAFETY: as above.
unsafe impl Send for T3sComponent {}
// SAFETY: as above.
unsafe impl Sync for T3sStr {}

/// The size of [`T3sComponent`] in version 1.0, which had no adapters.
pub const COMPONENT_SIZE_1_0: usize = std::mem::offset_of!(T3sComponent, adapt);

// The layout that libraries out there were built with.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<T3sStr>() == 16);
    assert!(size_of::<T3sColumn>() == 48);
    assert!(size_of::<T3sTokens>() == 104);
    assert!(size_of::<T3sExamples>() == 96);
    assert!(size_of::<T3sRows>() == 64);
    assert!(COMPONENT_SIZE_1_0 == 104);
    assert!(size_of::<T3sComponent>() == 136);
    assert!(size_of::<T3sPlugin>() == 64);
};

impl T3sStr {
    /// The text `text`, borrowed.
    pub const fn new(text: &str) -> Self {
        Self {
            data: text.as_ptr(),
            len: text.len(),
        }
    }

    /// The bytes, unless the pointer is null beside a length.
    ///
    /// # Safety
    /// `data` is null or points to `len` bytes that nobody writes during `'a`.
    pub unsafe fn bytes<'a>(self) -> Option<&'a [u8]> {
        // SAFETY: the caller's promise is the same.
        unsafe { slice(self.data, self.len) }
    }
}

impl T3sText {
    /// No text.
    pub const NONE: Self = Self {
        data: std::ptr::null_mut(),
        len: 0,
    };
}

/// The slice `data[..len]`; empty for a null pointer with length 0, `None` for one with another.
///
/// # Safety
/// `data` is null or points to `len` initialised elements that nobody writes during `'a`.
pub unsafe fn slice<'a, T>(data: *const T, len: usize) -> Option<&'a [T]> {
    if len == 0 {
        Some(&[])
    } else if data.is_null() || !data.is_aligned() || len > isize::MAX as usize / size_of::<T>() {
        None
    } else {
        // SAFETY: not null, aligned, of a possible length; the rest is the caller's promise.
        Some(unsafe { std::slice::from_raw_parts(data, len) })
    }
}
