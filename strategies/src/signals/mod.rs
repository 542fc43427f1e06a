//! Confidence signals: one score per token, from recorded columns.

pub mod anchor_alignment;
pub mod delta_logp;
pub mod entropy;
pub mod grad_norm;
pub mod logp;
pub mod mean_alignment;
pub mod rank;
pub mod sketch_norm;
pub mod sketches;
mod trajectory;
pub mod trajectory_rise;
pub mod trajectory_slope;

use serde::{Deserialize, Serialize};
use t3s_core::{CheckpointRef, ComponentError, TokenView};

/// A checkpoint as an option: `base`, `bottleneck`, `final`, `step:N`, `reference`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct At(CheckpointRef);

impl At {
    /// The checkpoint.
    pub fn checkpoint(&self) -> CheckpointRef {
        self.0.clone()
    }

    fn base() -> Self {
        Self(CheckpointRef::Base)
    }

    fn bottleneck() -> Self {
        Self(CheckpointRef::Bottleneck)
    }
}

impl From<At> for String {
    fn from(at: At) -> Self {
        at.0.to_string()
    }
}

impl TryFrom<String> for At {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.parse() {
            Ok(CheckpointRef::EveryStep) => Err(
                "step:* names every checkpoint; write one: base, bottleneck, final, step:N"
                    .to_owned(),
            ),
            Ok(at) => Ok(Self(at)),
            Err(error) => Err(ComponentError::to_string(&error)),
        }
    }
}

/// Writes the column `name` into `out`.
fn copy(tokens: &TokenView<'_>, name: &str, out: &mut [f32]) -> Result<(), ComponentError> {
    out.copy_from_slice(tokens.column(name)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use t3s_core::{TokenTable, registry::Registry, toml};

    /// The signal `name` with `options` over one text of three tokens.
    fn scores(name: &str, options: &str) -> Result<Vec<f32>, String> {
        let mut table = TokenTable::new(
            vec![0],
            vec![0, 3],
            vec![1, 2, 3],
            vec![4, 5, 6],
            vec![true; 3],
        )
        .unwrap();
        for (column, values) in [
            ("logp@base", [-3.0, -1.0, -2.0]),
            ("logp@bottleneck", [-1.0, -1.0, -4.0]),
            ("logp@step:5", [-0.5, -0.25, -1.0]),
            ("entropy@base", [0.5, 0.25, 2.0]),
            ("rank@base", [7.0, 0.0, 1.0]),
        ] {
            table.insert(column, values.to_vec()).unwrap();
        }
        let options: toml::Table = options.parse().expect("TOML");
        let signal = Registry::linked()
            .unwrap()
            .signal(name, &options)
            .map_err(|e| e.to_string())?;
        let mut out = vec![f32::NAN; 3];
        let view = table.view();
        for column in signal.needs() {
            view.column(&column.to_string()).expect("named in needs");
        }
        signal.compute(&view, &mut out).map_err(|e| e.to_string())?;
        Ok(out)
    }

    #[test]
    fn signals_are_what_they_say() {
        let of = |name, options| scores(name, options).unwrap();
        assert_eq!(of("logp", ""), [-3.0, -1.0, -2.0]);
        assert_eq!(of("logp", "at = 'bottleneck'"), [-1.0, -1.0, -4.0]);
        assert_eq!(of("delta-logp", ""), [2.0, 0.0, -2.0]);
        assert_eq!(of("delta-logp", "to = 'step:5'"), [2.5, 0.75, 1.0]);
        assert_eq!(
            of("delta-logp", "from = 'bottleneck'\nto = 'base'"),
            [-2.0, 0.0, 2.0]
        );
        assert_eq!(of("entropy", ""), [0.5, 0.25, 2.0]);
        assert_eq!(of("rank", ""), [7.0, 0.0, 1.0]);
    }

    #[test]
    fn options_are_read_strictly() {
        let refused = |name, options| scores(name, options).unwrap_err();
        assert!(refused("logp", "at = 'basis'").contains("basis"));
        assert!(refused("logp", "at = 'step:*'").contains("write one"));
        assert!(refused("logp", "to = 'base'").contains("to"));
        assert!(refused("delta-logp", "at = 'base'").contains("at"));
    }
}
