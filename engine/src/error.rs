//! What can go wrong with tensors.

use std::{io, path::PathBuf};

use t3s_core::{ComponentError, TableError};

/// Why the engine stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The tensor library refused an operation.
    #[error("tensor operation failed: {0}")]
    Tensor(candle_core::Error),

    /// The GPU has no room for a tensor, or for the workspace of a matrix product. What was computed
    /// before is untouched, and the device goes on computing.
    #[error(
        "the GPU's memory is full ({message}); lower the tokens per pass (train.micro_batch_tokens, \
         score.batch_tokens) or the answers written side by side (generate.batch), recompute activations (train.recompute = \"block\"), keep the optimiser's \
         moments in 8 bits (train.adamw.states = \"8bit\"), train an adapter (train.lora), or end what \
         else runs there (nvidia-smi lists it)"
    )]
    OutOfMemory {
        /// What the driver or the library said.
        message: String,
    },

    /// The GPU has no room for what answers written side by side have read.
    #[error(
        "the GPU has no room for the keys and values of {slots} answers of up to {positions} tokens \
         with their prompts: {bytes} bytes; lower generate.batch or generate.max_new_tokens"
    )]
    CacheTooLarge {
        /// Answers side by side.
        slots: usize,
        /// Tokens of the longest, its prompt included.
        positions: usize,
        /// What they take.
        bytes: usize,
    },

    /// A checkpoint has no tensor of a name the decoder needs.
    #[error("tensor {tensor} is missing; {hint}")]
    MissingTensor {
        /// Its Hugging Face name.
        tensor: String,
        /// What to do about it.
        hint: String,
    },

    /// A tensor has another shape than the decoder needs.
    #[error("tensor {tensor} has shape {found:?}; the model's config asks for {expected:?}")]
    Shape {
        /// Its Hugging Face name.
        tensor: String,
        /// The shape the spec asks for.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },

    /// A token id that the model's vocabulary does not have.
    #[error(
        "row {row} holds token id {id}, but the model's vocabulary ends at {vocab}; the tokenizer \
         does not fit the model"
    )]
    TokenId {
        /// Row of the batch.
        row: usize,
        /// The id.
        id: u32,
        /// The number of ids the model knows.
        vocab: usize,
    },

    /// A batch whose columns disagree.
    #[error("malformed batch: {message}")]
    Batch {
        /// What disagrees.
        message: String,
    },

    /// A number that is NaN or infinite.
    #[error(
        "{what} is not finite; the weights hold NaN or infinite values, or the learning rate is too high"
    )]
    NotFinite {
        /// Which number.
        what: String,
    },

    /// A device that is not there, or that cannot do what is asked.
    #[error("device {device}: {message}")]
    Device {
        /// As the plan writes it.
        device: String,
        /// What was found; what to do.
        message: String,
    },

    /// A decoder description that cannot be built.
    #[error("decoder spec: {key}: {message}")]
    Spec {
        /// The field of the spec or of the plan.
        key: String,
        /// What was found; what would be accepted.
        message: String,
    },

    /// A component (objective, signal, strategy, adapter) failed.
    #[error(transparent)]
    Component(#[from] ComponentError),

    /// A token table was refused.
    #[error(transparent)]
    Table(#[from] TableError),

    /// A file could not be read or written.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// A prompt that no answer can follow.
    #[error(
        "prompt {prompt} (counted from 0) has {tokens} tokens; write at least one, at most the \
         model's {max_positions} positions"
    )]
    Prompt {
        /// Its index.
        prompt: usize,
        /// Its length.
        tokens: usize,
        /// The model's positions.
        max_positions: usize,
    },

    /// The model does not say what comes next.
    #[error(
        "the logits of answer token {token} to prompt {prompt} (both counted from 0) are no finite \
         numbers; the model's weights have diverged"
    )]
    NonFiniteLogits {
        /// Index of the prompt.
        prompt: usize,
        /// Index of the token in the answer.
        token: usize,
    },

    /// A file of a checkpoint that is not what it should be.
    #[error("{}: {message}", .path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What was found; what to do.
        message: String,
    },

    /// A saved training state that this run cannot go on from.
    #[error("{}: {message}; remove the folder to start this training run anew", .folder.display())]
    State {
        /// The state's folder.
        folder: PathBuf,
        /// What is wrong with it.
        message: String,
    },

    /// Weights or state would be those of a step that nobody has been told of.
    #[error("step {step} is under way; ask for its report before anything is saved")]
    StepInFlight {
        /// That step.
        step: u64,
    },

    /// A gradient that is missing or is not the loss's.
    #[error("gradient check before the first step: {tensor}: {message}")]
    Gradient {
        /// The tensor, or the group of tensors.
        tensor: String,
        /// What is wrong with it.
        message: String,
    },

    /// A file or folder could not be written; what was there before is untouched.
    #[error(transparent)]
    Write(#[from] t3s_core::atomic::AtomicError),

    /// The progress callback asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        // The tensor library has no variant for it; these are the names of CUDA's and cuBLAS's codes.
        const CODES: [&str; 2] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];
        let text = error.to_string();
        match CODES.iter().find(|code| text.contains(**code)) {
            Some(code) => Self::OutOfMemory {
                message: (*code).to_owned(),
            },
            None => Self::Tensor(error),
        }
    }
}

impl EngineError {
    pub(crate) fn io(path: &std::path::Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gpu_is_told_apart() {
        // As the driver's and cuBLAS's errors are printed; the last is gemm.rs's.
        for (message, code) in [
            (
                "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
                "CUDA_ERROR_OUT_OF_MEMORY",
            ),
            (
                "linear: cuBLAS: CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
                "CUBLAS_STATUS_ALLOC_FAILED",
            ),
        ] {
            let full = candle_core::Error::Msg(message.to_owned()).bt();
            let text = EngineError::from(full).to_string();
            for part in [
                "micro_batch_tokens",
                "recompute",
                "adamw.states",
                "lora",
                code,
            ] {
                assert!(text.contains(part), "{text}");
            }
        }
        let other = EngineError::from(candle_core::Error::Msg("else".to_owned()));
        assert!(matches!(other, EngineError::Tensor(_)));
    }
}
