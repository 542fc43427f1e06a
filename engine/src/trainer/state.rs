//! The saved state of a run: weights that learn, both moments, cursor. What it takes to go on bit
//! for bit.

use std::{fs, path::Path};

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use t3s_core::{Fingerprint, atomic, plan::TrainPlan};

use super::{Trainer, order::Cursor};
use crate::{
    adamw::Moments,
    checkpoint::{Wanted, read_tensors, write_tensors},
    error::EngineError,
};

/// The layout that this version writes and reads.
const FORMAT: u32 = 1;
const TENSORS: &str = "state.safetensors";
/// How many values of a frozen tensor go into the run's fingerprint.
const FROZEN_VALUES: usize = 1024;

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    /// Of the plan, the seed, the data and the model's shape: what the run is.
    run: Fingerprint,
    steps: u64,
    optimizer_steps: u64,
    cursor: Cursor,
}

impl Trainer {
    /// Writes everything that [`Trainer::load_state`] needs into `folder`, replacing an older state
    /// whole.
    ///
    /// # Errors
    /// When it cannot be written or [`Trainer::is_ahead`]; an older state is then untouched.
    pub fn save_state(&self, folder: &Path) -> Result<(), EngineError> {
        self.check_settled()?;
        let state = State {
            format: FORMAT,
            run: self.fingerprint()?,
            steps: self.steps,
            optimizer_steps: self.optimizer.steps(),
            cursor: self.cursor,
        };
        let text = serde_json::to_vec_pretty(&state).expect("plain data is JSON");
        let params = &self.decoder.params;
        let mut tensors: Vec<(String, &Tensor)> = Vec::new();
        for moments in self.optimizer.moments() {
            let param = params.param(moments.id);
            tensors.push((format!("param/{}", param.name), &param.tensor));
            for (kind, tensor) in moments.state.tensors() {
                tensors.push((format!("{kind}/{}", param.name), tensor));
            }
        }
        atomic::write_folder(folder, |new| {
            write_tensors(&new.join(TENSORS), tensors)?;
            fs::write(new.join("state.json"), &text)
                .map_err(|source| EngineError::io(&new.join("state.json"), source))
        })
    }

    /// Goes on from the state in `folder`: what follows is, bit for bit, what would have followed
    /// without the interruption.
    ///
    /// # Errors
    /// When the state is of another run (another plan, other data, another model), of another
    /// version, or cannot be read; the trainer is then as it was.
    pub fn load_state(&mut self, folder: &Path) -> Result<(), EngineError> {
        let path = folder.join("state.json");
        let text = fs::read(&path).map_err(|source| EngineError::io(&path, source))?;
        let broken = |message: String| EngineError::State {
            folder: folder.to_owned(),
            message,
        };
        let state: State =
            serde_json::from_slice(&text).map_err(|e| broken(format!("state.json: {e}")))?;
        if state.format != FORMAT {
            let found = state.format;
            return Err(broken(format!(
                "it has layout {found}, this program reads layout {FORMAT}"
            )));
        }
        if state.run != self.fingerprint()? {
            return Err(broken(
                "it is of another run: plan, seed, data or model differ".to_owned(),
            ));
        }
        let (index, n) = (state.cursor.index, self.examples.len());
        if index > n {
            return Err(broken(format!(
                "state.json: cursor.index is {index}, but there are {n} examples"
            )));
        }
        let params = &self.decoder.params;
        let wanted = self.optimizer.moments();
        let names: Vec<Wanted> = wanted
            .iter()
            .flat_map(|moments| {
                let param = params.param(moments.id);
                let tensors = [("param", &param.tensor)]
                    .into_iter()
                    .chain(moments.state.tensors());
                // Files hold f32, which has every number of the other types.
                tensors.map(|(kind, t)| Wanted {
                    name: format!("{kind}/{}", param.name),
                    shape: t.dims().to_vec(),
                    dtype: t.dtype(),
                })
            })
            .collect();
        let device = params.tensor(wanted[0].id).device().clone();
        let mut tensors = read_tensors(&[folder.join(TENSORS)], &names, &device)?.into_iter();
        let mut next = || tensors.next().expect("one tensor per name");
        let mut loaded = Vec::new();
        let mut moments = Vec::new();
        for Moments { id, state } in wanted {
            loaded.push((*id, next()));
            moments.push(Moments {
                id: *id,
                state: state.filled(&mut next),
            });
        }
        for (id, tensor) in loaded {
            self.decoder.params.replace(id, tensor);
        }
        self.optimizer.restore(moments, state.optimizer_steps);
        self.cursor = state.cursor;
        self.ahead = None;
        self.steps = state.steps;
        self.reported = state.steps;
        self.in_flight = None;
        self.stalled = None;
        Ok(())
    }

    /// What makes this run this run. How often states are saved is no part of it.
    fn fingerprint(&self) -> Result<Fingerprint, EngineError> {
        let plan = TrainPlan {
            save_every: 0,
            ..self.plan.clone()
        };
        let params = &self.decoder.params;
        let tensors = params
            .iter()
            .map(|(_, p)| {
                // What learns is in the state; what is frozen has to be the same model's.
                let frozen = match p.trainable {
                    true => Vec::new(),
                    false => first_bits(&p.tensor)?,
                };
                Ok((p.name.as_str(), p.tensor.dims(), p.trainable, frozen))
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let examples: Vec<(u64, Fingerprint)> = self
            .examples
            .iter()
            .map(|e| {
                (
                    e.id,
                    Fingerprint::of_json(&(&e.ids, &e.trainable, &e.weights)),
                )
            })
            .collect();
        Ok(Fingerprint::of_json(&(plan, self.seed, tensors, examples)))
    }
}

/// The bits of the first few values: enough to tell two models apart, and far from reading them
/// whole each time a state is saved.
fn first_bits(tensor: &Tensor) -> Result<Vec<u32>, EngineError> {
    let n = tensor.elem_count().min(FROZEN_VALUES);
    let values = tensor.flatten_all()?.narrow(0, 0, n)?;
    let values = values.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}
