//! The plan: what a TOML file says, read once, checked whole, resolved.
//!
//! [`sections`] are the tables as types; their doc comments are the manual (`docs/plans.md` is made
//! from them). A [`RunPlan`] is the resolved plan: every default filled in, every path made
//! absolute or relative to the working directory, nothing optional left that has a default.
//!
//! [`load`] goes one way: raw tables are parsed and merged (`source`), overridden (`overrides`),
//! walked along the shape of the types (`shape`, `read`), read by serde, checked for sense
//! (`check`), and their components made (`resolve`). Every step notes its problems and goes on, so
//! that a user sees all of them at once.

mod check;
mod error;
mod explain;
pub mod merge;
mod overrides;
mod plugins;
mod read;
mod reference;
pub mod resolve;
pub mod sections;
mod shape;
mod source;
mod train_section;
mod write;

#[cfg(test)]
mod tests;

use std::path::Path;

pub use error::{Place, PlanError, PlanErrors, PlanWarning, Problem};
pub use explain::{Explanation, Origin, Origins};
pub use merge::{MergeModel, MergePlan, MergeTerm};
pub use reference::reference_markdown;
pub use resolve::{Resolved, components, selection_components};
pub use sections::*;

use crate::registry::Registry;
use error::Problems;

/// A plan with where it came from.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The resolved plan.
    pub plan: RunPlan,
    /// Its components.
    pub components: Resolved,
    /// Every component there is: those that were there, and those of the plan's plugins.
    pub registry: Registry,
    /// Where every written value stands.
    pub origins: Origins,
    /// What is odd and does not stop the run.
    pub warnings: Vec<PlanWarning>,
}

impl Loaded {
    /// Where the value of `key`, or of every key of the table `key`, comes from; all keys where
    /// `key` is empty.
    ///
    /// # Errors
    /// When the resolved plan has no such key; names the nearest.
    pub fn explain(&self, key: &str) -> Result<Vec<Explanation>, Box<PlanError>> {
        self.origins.explain(key, &self.plan.as_written())
    }
}

/// Loads the plan at `path`, with the files it extends and the overrides of the command line
/// (`KEY=VALUE`, e.g. `train.steps=50`), loads its plugins, and makes its components from `registry`
/// and from them.
///
/// # Errors
/// Every problem of the files and the overrides, each with its place.
pub fn load(path: &Path, overrides: &[String], registry: &Registry) -> Result<Loaded, PlanErrors> {
    let mut problems = Problems::default();
    let Some((mut root, layers)) = source::read(path, &mut problems) else {
        return problems.finish(None);
    };
    overrides::apply(&mut root, overrides, layers + 1, &mut problems);
    if !problems.is_empty() {
        // What could not be parsed would only look like missing keys.
        return problems.finish(None);
    }

    let origins = Origins::of(&root);
    let mut warnings = Vec::new();
    plugins::expand(&mut root, &mut problems);
    read::conform_plan(&mut root, &mut problems);
    let (registry, digests) = plugins::load(&root, registry, &mut problems);
    resolve::conform_components(&mut root, &registry, &mut problems, &mut warnings);
    let tree = read::effective(&root);
    let Some(mut plan) = read::plan_of(&tree, path, &mut problems) else {
        return problems.finish(None);
    };
    plan.plugins.sha256 = digests;

    let mut report = |key: &str, problem: Problem| {
        // A bad value that the probe inherits is reported once, for `[train]`.
        let inherited = key.starts_with("probe.") && root.find(key).is_none();
        if !problems.concern(key) && !inherited {
            problems.push(tree.place_of(key), key, problem);
        }
    };
    check::check(&plan, &mut report);
    let components = resolve::resolve(&plan, &registry, &mut |key, problem| {
        report(&key, problem);
    });
    if let Some(components) = &components {
        resolve::unused_signals(&plan, components, &tree, &mut warnings);
    }
    problems.finish(components.map(|components| Loaded {
        plan,
        components,
        registry,
        origins,
        warnings,
    }))
}
