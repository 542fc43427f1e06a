//! A plugin's model adapter as the host's trait.

use std::ffi::c_void;

use serde_json::{Value, json};

use super::{
    abi::{T3sComponent, T3sExamples, T3sRows, T3sStr, T3sText},
    call::{Instance, Library, from_json, missing, to_json},
};
use crate::{
    AttentionPattern, ComponentError, DecodeRule, DecoderSpec, Draw, ExampleBatch, FamilyOptions,
    HfConfig, ModelAdapter, ModelBatch, NO_TARGET, Objective, Weighting,
};

/// A model adapter of a plugin. An adapter has no options, so a fault in making one shows when it
/// is first asked.
pub(super) struct LoadedAdapter {
    library: Library,
    component: &'static T3sComponent,
    who: String,
    made: Result<Instance, ComponentError>,
}

impl LoadedAdapter {
    pub fn new(library: Library, component: &'static T3sComponent, who: &str) -> Self {
        Self {
            library,
            component,
            who: who.to_owned(),
            made: Instance::create(library, component, who, &toml::Table::new()),
        }
    }

    fn instance(&self) -> Result<&Instance, ComponentError> {
        self.made.as_ref().map_err(Clone::clone)
    }

    fn ask<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        request: &Value,
    ) -> Result<T, ComponentError> {
        let instance = self.instance()?;
        let adapt = self
            .component
            .adapt
            .ok_or_else(|| missing(&self.who, "adapt"))?;
        let request = request.to_string();
        let (mut answer, mut error) = (T3sText::NONE, T3sText::NONE);
        // SAFETY: a living instance of this component; the other arguments outlive the call.
        let status = unsafe {
            adapt(
                instance.pointer,
                T3sStr::new(&request),
                &mut answer,
                &mut error,
            )
        };
        let answer = self.library.take(answer);
        self.library.outcome(&self.who, status, error)?;
        from_json(&self.who, what, &answer?)
    }
}

fn options_value(options: &toml::Table) -> Result<Value, ComponentError> {
    from_json("the plan", "options", &to_json(options)?)
}

impl ModelAdapter for LoadedAdapter {
    fn claims(&self, config: &HfConfig) -> bool {
        // The trait has no room for an error here: an adapter that cannot answer claims nothing, and
        // whoever names it in a plan sees the error of the next question.
        let request = json!({ "ask": "claims", "config": config.0 });
        self.ask("claim", &request).unwrap_or(false)
    }

    fn decoder(&self, config: &HfConfig) -> Result<DecoderSpec, ComponentError> {
        let request = json!({ "ask": "decoder", "config": config.0 });
        let spec: DecoderSpec = self.ask("decoder", &request)?;
        spec.check()
            .map_err(|error| ComponentError::Failed(format!("{}: {error}", self.who)))?;
        Ok(spec)
    }

    fn options(&self, config: &HfConfig) -> Result<FamilyOptions, ComponentError> {
        if self.library.minor < 2 {
            return Ok(FamilyOptions::default());
        }
        let request = json!({ "ask": "options", "config": config.0 });
        self.ask("options", &request)
    }

    fn objective(&self, options: &toml::Table) -> Result<Box<dyn Objective>, ComponentError> {
        let instance = self.instance()?;
        let make = self.component.objective;
        let make = make.ok_or_else(|| missing(&self.who, "objective"))?;
        let options = to_json(options)?;
        let mut pointer = std::ptr::null_mut();
        let (mut attention, mut error) = (T3sText::NONE, T3sText::NONE);
        // SAFETY: a living instance of this component; the other arguments outlive the call.
        let status = unsafe {
            make(
                instance.pointer,
                T3sStr::new(&options),
                &mut pointer,
                &mut attention,
                &mut error,
            )
        };
        let attention = self.library.take(attention);
        self.library.outcome(&self.who, status, error)?;
        let mut objective = LoadedObjective {
            library: self.library,
            component: self.component,
            who: self.who.clone(),
            pointer,
            attention: AttentionPattern::Causal,
            weighting: Weighting::Loss,
        };
        if pointer.is_null() {
            let message = format!("the objective of {} was made and is null", self.who);
            return Err(ComponentError::Failed(message));
        }
        let attention = attention?;
        objective.attention = from_json(&self.who, "attention pattern", &attention)?;
        let said: Said = from_json(&self.who, "weighting", &attention)?;
        objective.weighting = said.weighting.unwrap_or(Weighting::Loss);
        Ok(Box::new(objective))
    }

    fn decode(&self, options: &toml::Table) -> Result<DecodeRule, ComponentError> {
        let request = json!({ "ask": "decode", "options": options_value(options)? });
        self.ask("decode rule", &request)
    }
}

/// A plugin's objective; destroyed with it.
struct LoadedObjective {
    library: Library,
    component: &'static T3sComponent,
    who: String,
    pointer: *mut c_void,
    attention: AttentionPattern,
    weighting: Weighting,
}

/// What an objective says of itself besides the attention pattern; before 1.2, nothing.
#[derive(serde::Deserialize)]
struct Said {
    weighting: Option<Weighting>,
}

// SAFETY: the interface asks plugins for functions that may be called from several threads at once
// on one objective; the pointer is only ever handed to them.
unsafe impl Send for LoadedObjective {}
// SAFETY: as above.
unsafe impl Sync for LoadedObjective {}

impl Drop for LoadedObjective {
    fn drop(&mut self) {
        if let Some(destroy) = self.component.destroy_objective
            && !self.pointer.is_null()
        {
            // SAFETY: made by this component's `objective`, and not used after this.
            unsafe { destroy(self.pointer) };
        }
    }
}

impl Objective for LoadedObjective {
    fn attention(&self) -> AttentionPattern {
        self.attention
    }

    fn weighting(&self) -> Weighting {
        self.weighting
    }

    fn prepare(
        &self,
        batch: &ExampleBatch<'_>,
        draw: Draw,
        out: &mut ModelBatch,
    ) -> Result<(), ComponentError> {
        let prepare = self.component.prepare;
        let prepare = prepare.ok_or_else(|| missing(&self.who, "prepare"))?;
        let (tokens, examples) = (batch.ids.len(), batch.example_ids.len());
        if !batch.noisy_ids.is_empty() && self.library.minor < 2 {
            return Err(ComponentError::Failed(format!(
                "{} was built for version 1.{} of the plugin interface, which knows no noisy_ids; \
                 build it anew, or remove the field from the data",
                self.who, self.library.minor
            )));
        }
        let capacity = tokens * self.attention.rows_per_token();
        out.input_ids.resize(capacity, 0);
        out.positions.resize(capacity, 0);
        out.target_pos.resize(capacity, NO_TARGET);
        out.weights.resize(capacity, 0.0);
        out.offsets.resize(examples + 1, 0);
        let lent = T3sExamples {
            size: size_of::<T3sExamples>(),
            n_tokens: tokens,
            n_examples: examples,
            example_ids: batch.example_ids.as_ptr(),
            offsets: batch.offsets.as_ptr(),
            ids: batch.ids.as_ptr(),
            // A bool is a byte, 0 or 1.
            trainable: batch.trainable.as_ptr().cast(),
            weights: batch.weights.as_ptr(),
            seed: draw.seed,
            draw: draw.number,
            strata: draw.strata,
            noisy_ids: match batch.noisy_ids.is_empty() {
                true => std::ptr::null(),
                false => batch.noisy_ids.as_ptr(),
            },
        };
        let mut rows = T3sRows {
            size: size_of::<T3sRows>(),
            capacity,
            n_rows: 0,
            input_ids: out.input_ids.as_mut_ptr(),
            positions: out.positions.as_mut_ptr(),
            target_pos: out.target_pos.as_mut_ptr(),
            weights: out.weights.as_mut_ptr(),
            offsets: out.offsets.as_mut_ptr(),
        };
        let mut error = T3sText::NONE;
        // SAFETY: a living objective of this component; both structures point to buffers of the
        // lengths they say, which outlive the call.
        let status = unsafe { prepare(self.pointer, &lent, &mut rows, &mut error) };
        self.library.outcome(&self.who, status, error)?;
        let n = rows.n_rows;
        out.input_ids.truncate(n);
        out.positions.truncate(n);
        out.target_pos.truncate(n);
        out.weights.truncate(n);
        check(out, n, capacity, tokens)
            .map_err(|fault| ComponentError::Failed(format!("{} prepared {fault}", self.who)))
    }
}

/// What the engine relies on.
fn check(rows: &ModelBatch, n: usize, capacity: usize, tokens: usize) -> Result<(), String> {
    if n > capacity {
        return Err(format!("{n} rows where there was room for {capacity}"));
    }
    let covers = rows.offsets.first() == Some(&0)
        && rows.offsets.last().is_some_and(|last| *last as usize == n)
        && rows.offsets.is_sorted();
    if !covers {
        return Err(format!("offsets that do not cover its {n} rows in order"));
    }
    for (row, (target, weight)) in rows.target_pos.iter().zip(&rows.weights).enumerate() {
        if *target != NO_TARGET && *target as usize >= tokens {
            return Err(format!("row {row} to predict token {target} of {tokens}"));
        }
        if !(weight.is_finite() && *weight >= 0.0) || (*target == NO_TARGET && *weight > 0.0) {
            return Err(format!("row {row} with the weight {weight}"));
        }
    }
    Ok(())
}
