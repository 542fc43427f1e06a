//! Tensors of one shape that a checkpoint may hold as one: the same projection of all experts.

use std::{collections::BTreeSet, path::Path};

use candle_core::Tensor;
use t3s_core::{
    DecoderSpec,
    decoder_spec::{MlpSpec, MoeNames, TensorNames},
};

use super::{folder::weight_files, read::TensorFile};
use crate::{error::EngineError, params::Params};

/// A tensor `[members, ...]` in place of its members.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stack {
    /// E.g. `model.layers.1.mlp.experts.gate_proj`.
    pub name: String,
    /// What it may stand for, in order.
    pub members: Vec<String>,
}

/// Every stack that a checkpoint of `spec` may have.
pub(super) fn stacks(spec: &DecoderSpec) -> Vec<Stack> {
    let MlpSpec::Moe(moe) = &spec.mlp else {
        return Vec::new();
    };
    let Some(stacked) = &moe.names.stacked else {
        return Vec::new();
    };
    let names = &moe.names;
    let of = [
        (&stacked.gate, &names.gate),
        (&stacked.up, &names.up),
        (&stacked.down, &names.down),
    ];
    (moe.dense_layers..spec.n_layers)
        .flat_map(|layer| of.map(|(stack, member)| (layer, stack, member)))
        .map(|(layer, stack, member)| Stack {
            name: TensorNames::at(stack, layer),
            members: (0..moe.n_experts)
                .map(|e| TensorNames::at(&MoeNames::expert(member, e), layer))
                .collect(),
        })
        .collect()
}

/// Those of [`stacks`] that the checkpoint in `folder` has; none where it has no weights.
///
/// # Errors
/// When a file of it cannot be read.
pub(super) fn stacks_in(folder: &Path, spec: &DecoderSpec) -> Result<Vec<Stack>, EngineError> {
    let mut stacks = stacks(spec);
    let files = match stacks.is_empty() {
        true => return Ok(stacks),
        false => weight_files(folder).unwrap_or_default(),
    };
    let mut there = BTreeSet::new();
    for file in files {
        there.extend(TensorFile::open(&file)?.names().map(str::to_owned));
    }
    stacks.retain(|stack| there.contains(&stack.name));
    Ok(stacks)
}

/// A tensor of a file that is about to be written.
pub(super) struct Entry<'p> {
    /// Its name.
    pub name: String,
    /// One tensor, or the members of a stack.
    pub parts: Vec<&'p Tensor>,
    /// Whether it is a stack.
    pub is_stack: bool,
}

impl<'p> Entry<'p> {
    /// A tensor by itself.
    pub fn single(name: String, tensor: &'p Tensor) -> Self {
        Self {
            name,
            parts: vec![tensor],
            is_stack: false,
        }
    }

    /// Number of values.
    pub fn elem_count(&self) -> usize {
        self.parts.iter().map(|part| part.elem_count()).sum()
    }
}

/// What a checkpoint of `params` holds, with `stacks` in place of their members.
pub(super) fn entries<'p>(params: &'p Params, stacks: &[Stack]) -> Vec<Entry<'p>> {
    let members: BTreeSet<&str> = stacks
        .iter()
        .flat_map(|stack| stack.members.iter().map(String::as_str))
        .collect();
    let single = params
        .iter()
        .filter(|(_, param)| !members.contains(param.name.as_str()))
        .map(|(_, param)| Entry::single(param.name.clone(), &param.tensor));
    let stacked = stacks.iter().map(|stack| Entry {
        name: stack.name.clone(),
        parts: stack
            .members
            .iter()
            .filter_map(|name| Some(params.tensor(params.id(name)?)))
            .collect(),
        is_stack: true,
    });
    single.chain(stacked).collect()
}
