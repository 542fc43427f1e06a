//! The models that are measured: `config.json` files of published models, and one small one.

use std::path::Path;

use t3s_core::{AttentionPattern, DecoderSpec, HfConfig, plan::StudentPlan, registry::Registry};

use crate::{
    error::PipelineError,
    student::{adapter_of, read_config},
};

/// Names and texts. `benches/peers/hf_train.py` reads the same files.
const NAMED: [(&str, &str); 7] = [
    ("tiny", include_str!("configs/tiny.json")),
    ("qwen3-0.6b", include_str!("configs/qwen3-0.6b.json")),
    ("qwen3-1.7b", include_str!("configs/qwen3-1.7b.json")),
    ("qwen3-4b", include_str!("configs/qwen3-4b.json")),
    ("qwen3-8b", include_str!("configs/qwen3-8b.json")),
    ("qwen3-14b", include_str!("configs/qwen3-14b.json")),
    ("qwen3-32b", include_str!("configs/qwen3-32b.json")),
];

/// The geometry that `config` names: one of this list, or a `config.json`. Nothing ends an answer, so
/// that every answer has the length asked for.
///
/// # Errors
/// When it is neither, no adapter understands it, or its family does not read from left to right.
pub fn open(config: &str, registry: &Registry) -> Result<DecoderSpec, PipelineError> {
    let table = match NAMED.iter().find(|(name, _)| *name == config) {
        Some((_, text)) => HfConfig(serde_json::from_str(text).expect("a test reads them all")),
        None if Path::new(config).exists() => read_config(Path::new(config))?,
        None => {
            let names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
            return Err(PipelineError::plan(
                "--config",
                format!(
                    "{config:?} is neither a file nor one of {}",
                    names.join(", ")
                ),
            ));
        }
    };
    let plan = StudentPlan::new(config.into());
    let (name, adapter) = adapter_of(&plan, &table, registry)?;
    let component = |source| PipelineError::Component {
        component: format!("{config}: model adapter {name:?}"),
        source,
    };
    let mut spec = adapter.decoder(&table).map_err(component)?;
    let options = adapter.options(&table).map_err(component)?;
    let objective = adapter.objective(&options.objective).map_err(component)?;
    if objective.attention() != AttentionPattern::Causal {
        return Err(PipelineError::plan(
            "--config",
            format!(
                "{config}: the family {name:?} masks its input; t3s bench measures families that \
                 predict every token from what is before it"
            ),
        ));
    }
    spec.eos_ids = Vec::new();
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use t3s_core::{
        decoder_spec::TensorRole,
        plan::{LoraPlan, Recompute, StatePrecision, TrainPlan},
    };
    use t3s_engine::{Footprint, footprint::PassRows};

    use super::*;

    /// All and without embeddings, in billions, as the models' cards say (arXiv 2505.09388 rounds
    /// further).
    const PUBLISHED: [(&str, f64, f64); 6] = [
        ("qwen3-0.6b", 0.6, 0.44),
        ("qwen3-1.7b", 1.7, 1.4),
        ("qwen3-4b", 4.0, 3.6),
        ("qwen3-8b", 8.2, 6.95),
        ("qwen3-14b", 14.8, 13.2),
        ("qwen3-32b", 32.8, 31.2),
    ];

    #[test]
    fn the_geometries_have_the_published_sizes() {
        let registry = Registry::linked().unwrap();
        for (name, all, inner) in PUBLISHED {
            let spec = open(name, &registry).unwrap();
            let billions = |without: &[TensorRole]| {
                let tensors = spec.tensors();
                let counted = tensors.iter().filter(|t| !without.contains(&t.role));
                let n: usize = counted.map(|t| t.shape.iter().product::<usize>()).sum();
                n as f64 / 1e9
            };
            // Half a unit of the last digit that the card gives.
            let unit = |figure: f64| match (figure * 10.0).fract().abs() < 1e-9 {
                true => 0.05,
                false => 0.005,
            };
            let (n, outer) = (billions(&[]), [TensorRole::Embedding, TensorRole::Head]);
            assert!((n - all).abs() < unit(all), "{name}: {n} G");
            let n = billions(&outer);
            assert!((n - inner).abs() < unit(inner), "{name}: {n} G inside");
        }
        assert_eq!(
            open("qwen3-0.6b", &registry).unwrap().n_parameters(),
            596_049_920
        );
        assert_eq!(open("tiny", &registry).unwrap().n_parameters(), 5_771_264);
    }

    #[test]
    fn what_is_no_config_is_refused_by_name() {
        let registry = Registry::linked().unwrap();
        let error = open("qwen3-9b", &registry).unwrap_err().to_string();
        assert!(
            error.contains("\"qwen3-9b\"") && error.contains("qwen3-8b"),
            "{error}"
        );
    }

    /// Qwen3-8B on a GPU of 80 GB: an adapter over 16 k packed tokens, and all weights over 8 k with
    /// moments of 8 bits. Predicted bytes, as `t3s check` counts them.
    #[test]
    fn eight_billion_weights_fit_in_80_gb() {
        let spec = open("qwen3-8b", &Registry::linked().unwrap()).unwrap();
        let bytes = |lora: Option<LoraPlan>, states, rows| {
            let mut plan = TrainPlan {
                lora,
                recompute: Recompute::Block,
                ..TrainPlan::new(1, 1e-4)
            };
            plan.adamw.states = states;
            Footprint::of(&spec, DType::BF16, &plan).training(PassRows {
                rows,
                asked: rows,
                positions: 4096,
                attention: AttentionPattern::Causal,
            })
        };
        let adapter = LoraPlan {
            rank: 16,
            ..LoraPlan::default()
        };
        for (lora, states, rows) in [
            (Some(adapter), StatePrecision::F32, 16 << 10),
            (None, StatePrecision::Bits8, 8 << 10),
        ] {
            let gigabytes = bytes(lora, states, rows) as f64 / 1e9;
            assert!(gigabytes < 78.0, "{gigabytes} GB");
        }
    }
}
