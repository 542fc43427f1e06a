//! Model adapters across the boundary.

use std::ffi::c_void;

use serde::Deserialize;
use t3s_core::{
    Draw, ExampleBatch, HfConfig, ModelAdapter, ModelBatch, Objective,
    plugin::abi::{T3sExamples, T3sRows, T3sStr, T3sText},
    registry::Factory,
    toml,
};

use super::{
    catch::{Fault, guarded, set_text},
    entry, hand_out, options, to_json,
    view::{given, room},
};

/// What a host may ask.
#[derive(Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    Claims {
        config: serde_json::Map<String, serde_json::Value>,
    },
    Decoder {
        config: serde_json::Map<String, serde_json::Value>,
    },
    Options {
        config: serde_json::Map<String, serde_json::Value>,
    },
    Decode {
        options: toml::Table,
    },
}

pub(super) unsafe extern "C" fn create(
    context: *const c_void,
    _: T3sStr,
    instance: *mut *mut c_void,
    error: *mut T3sText,
) -> i32 {
    guarded(error, || {
        // SAFETY: the host hands a component its own context.
        let Factory::Adapter(make) = unsafe { entry(context) }.factory else {
            return Err(Fault::new("not a model adapter"));
        };
        // SAFETY: the host's place.
        unsafe { hand_out(make(), instance) };
        Ok(())
    })
}

/// # Safety
/// `instance` is of [`create`] and lives during `'a`.
unsafe fn adapter<'a>(instance: *const c_void) -> &'a dyn ModelAdapter {
    // SAFETY: the caller's promise.
    unsafe { &*instance.cast::<Box<dyn ModelAdapter>>() }.as_ref()
}

pub(super) unsafe extern "C" fn adapt(
    instance: *const c_void,
    request: T3sStr,
    answer: *mut T3sText,
    error: *mut T3sText,
) -> i32 {
    guarded(error, || {
        // SAFETY: an instance of `create` and a text, both alive for the call.
        let (adapter, request) = unsafe { (adapter(instance), request.bytes()) };
        let request = serde_json::from_slice(request.unwrap_or_default())
            .map_err(|error| Fault::new(format!("request: {error}")))?;
        let said = match request {
            Request::Claims { config } => to_json(&adapter.claims(&HfConfig(config)))?,
            Request::Decoder { config } => to_json(&adapter.decoder(&HfConfig(config))?)?,
            Request::Options { config } => to_json(&adapter.options(&HfConfig(config))?)?,
            Request::Decode { options } => to_json(&adapter.decode(&options)?)?,
        };
        set_text(answer, said);
        Ok(())
    })
}

pub(super) unsafe extern "C" fn objective(
    instance: *const c_void,
    text: T3sStr,
    objective: *mut *mut c_void,
    attention: *mut T3sText,
    error: *mut T3sText,
) -> i32 {
    guarded(error, || {
        // SAFETY: an instance of `create` and a text, both alive for the call.
        let (adapter, options) = unsafe { (adapter(instance), options(text)?) };
        let made = adapter.objective(&options)?;
        let mut said = serde_json::to_value(made.attention())
            .map_err(|error| Fault::new(format!("the attention pattern: {error}")))?;
        if let Some(said) = said.as_object_mut() {
            said.insert("weighting".to_owned(), serde_json::json!(made.weighting()));
        }
        set_text(attention, said.to_string());
        // SAFETY: the host's place.
        unsafe { hand_out(made, objective) };
        Ok(())
    })
}

pub(super) unsafe extern "C" fn prepare(
    objective: *const c_void,
    examples: *const T3sExamples,
    rows: *mut T3sRows,
    error: *mut T3sText,
) -> i32 {
    guarded(error, || {
        // SAFETY: an objective of `objective`, and structures of the host's, alive for the call;
        // nobody else uses `rows` meanwhile.
        let (objective, lent, rows) = unsafe {
            let objective = &*objective.cast::<Box<dyn Objective>>();
            (objective, &*examples, &mut *rows)
        };
        let (n, count) = (lent.n_tokens, lent.n_examples);
        // SAFETY: the host's columns have the lengths it says.
        let batch = unsafe {
            ExampleBatch {
                example_ids: given(lent.example_ids, count, "example_ids")?,
                offsets: given(lent.offsets, count + 1, "offsets")?,
                ids: given(lent.ids, n, "ids")?,
                trainable: given(lent.trainable.cast::<bool>(), n, "trainable")?,
                weights: given(lent.weights, n, "weights")?,
                noisy_ids: match lent.noisy_ids.is_null() {
                    true => &[],
                    false => given(lent.noisy_ids, n, "noisy_ids")?,
                },
            }
        };
        let draw = Draw {
            seed: lent.seed,
            number: lent.draw,
            strata: lent.strata,
        };
        let mut made = ModelBatch::default();
        objective.prepare(&batch, draw, &mut made)?;
        let n_rows = made.input_ids.len();
        if n_rows > rows.capacity || made.offsets.len() != count + 1 {
            let room = rows.capacity;
            return Err(Fault::new(format!(
                "{n_rows} rows; there is room for {room}"
            )));
        }
        // SAFETY: the host's buffers hold `capacity` rows and one offset more than examples.
        unsafe {
            room(rows.input_ids, n_rows)?.copy_from_slice(&made.input_ids);
            room(rows.positions, n_rows)?.copy_from_slice(&made.positions);
            room(rows.target_pos, n_rows)?.copy_from_slice(&made.target_pos);
            room(rows.weights, n_rows)?.copy_from_slice(&made.weights);
            room(rows.offsets, count + 1)?.copy_from_slice(&made.offsets);
        }
        rows.n_rows = n_rows;
        Ok(())
    })
}
