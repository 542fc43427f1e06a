//! An example plugin: keep the tokens that a reference model finds much easier than the student,
//! Rho-1's selection (arXiv 2404.07965), on a recorded table.
//!
//! # To write your own
//!
//! `t3s plugin new` begins with less; to begin with this one:
//!
//! 1. Copy this folder out of the repository and give the package and the strategy a new name. In
//!    its `Cargo.toml`, replace `workspace = true` by versions of your own and the dependency
//!    `t3s-plugin` by a path or a git address.
//! 2. Options are the public fields of the struct: their doc comments are the manual, their
//!    defaults the `Default` implementation. `deny_unknown_fields` turns a misspelt option into an
//!    error that names it.
//! 3. `needs` names the columns, `select` turns them into weights, `declare` says what users may
//!    rely on. The test at the end of the file holds the strategy to all of that.
//! 4. Build it (`cargo build --release`) and name the library in a plan's `[plugins] load`. Or link it:
//!    add the crate to the dependencies of a program, and `t3s_plugin::plugins! { my_plugin }`.
//!
//! A plan that uses this one names a reference model, at which `logp@reference` is recorded.

use t3s_plugin::{
    ComponentError, Declaration, Scope, SelectContext, SelectionStrategy, SignalRef, TokenView,
    When, budget, register_strategy,
};

/// The student's log-probabilities.
const STUDENT: &str = "logp@base";
/// The reference model's.
const REFERENCE: &str = "logp@reference";

/// Keeps the share of the tokens with the largest excess loss, the student's loss less the
/// reference's: `logp@reference - logp@base`, nats.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExcessLoss {
    /// Share of the response tokens that stays in the loss, above 0 and at most 1; over the whole
    /// data set, exact to the token, rounded up.
    pub share: Share,
}

/// A number above 0, at most 1.
#[derive(
    Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(try_from = "f64", into = "f64")]
#[schemars(with = "f64")]
pub struct Share(f64);

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if share > 0.0 && share <= 1.0 {
            Ok(Self(share))
        } else {
            Err(format!(
                "{share} is not a share; write a number above 0 and at most 1"
            ))
        }
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> Self {
        share.0
    }
}

register_strategy!(
    "excess-loss",
    ExcessLoss,
    "the share of tokens whose loss exceeds a reference model's most (share)"
);

impl Default for ExcessLoss {
    fn default() -> Self {
        Self { share: Share(0.6) }
    }
}

impl SelectionStrategy for ExcessLoss {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(STUDENT), SignalRef::new(REFERENCE)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        Declaration::new(Scope::Global)
            .keeps(self.share.0)
            .rising(REFERENCE)
            .falling(STUDENT)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let student = tokens.numbers(STUDENT)?;
        let reference = tokens.numbers(REFERENCE)?;
        // (excess, example, position, row) of what may be trained on. Equals are taken in the order
        // of example and position: where a row happens to stand must not matter.
        let mut ranked = Vec::new();
        for (example, rows) in tokens.examples() {
            for row in rows.filter(|row| tokens.eligible()[*row]) {
                // Adding 0 makes one number of both zeros.
                let excess = reference[row] - student[row] + 0.0;
                ranked.push((excess, example, tokens.positions()[row], row));
            }
        }
        ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        out.fill(0.0);
        for (_, _, _, row) in &ranked[..budget(self.share.0, ranked.len())] {
            out[*row] = 1.0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use t3s_plugin::{Kind, Registry, TokenTable, laws, toml};

    use super::*;

    #[test]
    fn laws_hold() {
        let registry = Registry::linked().expect("no clash");
        let entry = registry
            .get(Kind::Strategy, "excess-loss")
            .expect("registered");
        for options in ["", "share = 0.07", "share = 1.0"] {
            let options: toml::Table = options.parse().expect("TOML");
            if let Err(broken) = laws::registration(entry, &options) {
                panic!("{options}\n{broken}");
            }
        }
    }

    #[test]
    fn the_largest_excess_stays() {
        let mut table = TokenTable::new(
            vec![9, 4],
            vec![0, 3, 5],
            vec![1; 5],
            vec![2, 3, 4, 2, 3],
            vec![false, true, true, true, true],
        )
        .unwrap();
        // Excess: (prompt), 1, 2, 1, 0.
        let student = vec![-9.0, -2.0, -4.0, -1.5, -0.5];
        let reference = vec![-0.0, -1.0, -2.0, -0.5, -0.5];
        table.insert(STUDENT, student).unwrap();
        table.insert(REFERENCE, reference).unwrap();
        let kept = |share| {
            let mut out = vec![f32::NAN; 5];
            let rule = ExcessLoss {
                share: Share(share),
            };
            rule.select(&table.view(), &SelectContext::recorded(0), &mut out)
                .unwrap();
            out
        };
        assert_eq!(kept(0.25), [0.0, 0.0, 1.0, 0.0, 0.0]);
        // The tie at 1 goes to example 4, though it comes second in the table.
        assert_eq!(kept(0.5), [0.0, 0.0, 1.0, 1.0, 0.0]);
        assert_eq!(kept(0.75), [0.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn shares_are_shares() {
        let refused = |text: &str| {
            let options: toml::Table = text.parse().expect("TOML");
            let registry = Registry::linked().expect("no clash");
            let made = registry.strategy("excess-loss", &options);
            made.err().expect("refused").to_string()
        };
        for share in ["0.0", "1.5", "-0.2", "nan"] {
            let message = refused(&format!("share = {share}"));
            assert!(message.contains("is not a share"), "{message}");
        }
        assert!(refused("shaer = 0.5").contains("shaer"));
    }
}
