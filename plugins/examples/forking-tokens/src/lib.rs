//! An example plugin: keep the forking tokens (arXiv 2506.01939), those at which the base student
//! is least sure what comes next. Nothing but its own example decides about a token.

use t3s_plugin::{
    ComponentError, Declaration, Scope, SelectContext, SelectionStrategy, SignalRef, TokenView,
    When, budget, register_strategy,
};

const ENTROPY: &str = "entropy@base";

/// Keeps a share of each example's tokens, those of highest entropy.
#[derive(Debug, Clone, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ForkingTokens {
    /// Share of each example's response tokens that stays, 0 to 1; rounded up.
    pub share: f64,
}

register_strategy!(
    "forking-tokens",
    ForkingTokens,
    "each example's tokens of highest entropy (share)"
);

impl Default for ForkingTokens {
    fn default() -> Self {
        Self { share: 0.2 }
    }
}

impl SelectionStrategy for ForkingTokens {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(ENTROPY)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        Declaration::new(Scope::PerExample)
            .keeps(self.share)
            .rising(ENTROPY)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let entropy = tokens.numbers(ENTROPY)?;
        out.fill(0.0);
        for (_, rows) in tokens.examples() {
            let mut ranked: Vec<usize> = rows.filter(|row| tokens.eligible()[*row]).collect();
            // Equals in the order of position; adding 0 makes one number of both zeros.
            ranked.sort_unstable_by(|a, b| {
                let by_entropy = (entropy[*b] + 0.0).total_cmp(&(entropy[*a] + 0.0));
                by_entropy.then(tokens.positions()[*a].cmp(&tokens.positions()[*b]))
            });
            for row in &ranked[..budget(self.share, ranked.len())] {
                out[*row] = 1.0;
            }
        }
        Ok(())
    }
}

#[test]
fn laws_hold() {
    for share in [0.0, 0.2, 1.0] {
        t3s_plugin::laws::assert_strategy(|| Box::new(ForkingTokens { share }));
    }
}
