//! The weights of a model, by Hugging Face tensor name.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};
use t3s_core::decoder_spec::TensorRole;

/// Names one tensor of [`Params`]; layers hold ids, never tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(usize);

impl ParamId {
    /// Index into [`Params::iter`]'s order.
    pub fn index(self) -> usize {
        self.0
    }
}

/// The type of a tensor of this role in a model of type `model`: constants, which decide and are not
/// multiplied by, are f32 everywhere, so that a model chooses in bfloat16 by what it chooses by in f32.
pub fn dtype_of(role: TensorRole, model: DType) -> DType {
    match role {
        TensorRole::Constant => DType::F32,
        _ => model,
    }
}

/// One weight tensor.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its Hugging Face tensor name (adapters: PEFT's).
    pub name: String,
    /// Its value. The optimiser writes into the tensor's storage in place.
    pub tensor: Tensor,
    /// Whether it learns; frozen tensors get no gradient.
    pub trainable: bool,
}

/// Every weight of a model.
#[derive(Debug, Clone, Default)]
pub struct Params {
    list: Vec<Param>,
    by_name: BTreeMap<String, ParamId>,
}

impl Params {
    /// Adds a trainable tensor.
    ///
    /// # Panics
    /// When the name is taken, which is a bug in the model's construction.
    pub fn push(&mut self, name: impl Into<String>, tensor: Tensor) -> ParamId {
        let name = name.into();
        let id = ParamId(self.list.len());
        let before = self.by_name.insert(name.clone(), id);
        assert!(before.is_none(), "two tensors are called {name}");
        self.list.push(Param {
            name,
            tensor,
            trainable: true,
        });
        id
    }

    /// The tensor of `id`.
    pub fn tensor(&self, id: ParamId) -> &Tensor {
        &self.list[id.0].tensor
    }

    /// Everything about `id`.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.list[id.0]
    }

    /// The id of the tensor `name`.
    pub fn id(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    /// Freezes or thaws `id`.
    pub fn set_trainable(&mut self, id: ParamId, trainable: bool) {
        self.list[id.0].trainable = trainable;
    }

    /// Replaces the tensor of `id` by one of the same shape.
    ///
    /// # Panics
    /// When the shape differs.
    pub fn replace(&mut self, id: ParamId, tensor: Tensor) {
        assert_eq!(
            self.list[id.0].tensor.dims(),
            tensor.dims(),
            "{}",
            self.list[id.0].name
        );
        self.list[id.0].tensor = tensor;
    }

    /// Turns the tensors that `which` picks into `dtype`, one after the other.
    ///
    /// # Errors
    /// When the device fails.
    pub fn cast(&mut self, dtype: DType, which: impl Fn(&Param) -> bool) -> Result<()> {
        for param in self.list.iter_mut().filter(|param| which(param)) {
            param.tensor = param.tensor.to_dtype(dtype)?;
        }
        Ok(())
    }

    /// Every tensor, in the order of construction.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ParamId, &Param)> {
        self.list
            .iter()
            .enumerate()
            .map(|(index, param)| (ParamId(index), param))
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The number of elements, all or only those that learn.
    pub fn n_elements(&self, trainable_only: bool) -> usize {
        self.list
            .iter()
            .filter(|param| param.trainable || !trainable_only)
            .map(|param| param.tensor.elem_count())
            .sum()
    }
}
