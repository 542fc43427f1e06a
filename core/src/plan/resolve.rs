//! The components that a plan names: made from their options, with what they read.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use super::{
    check::{checkpoints, has_checkpoint},
    error::{PlanErrors, PlanWarning, Problem, Problems},
    read::{conform_table, join},
    sections::{RunPlan, SelectionPlan, SignalPlan},
    shape::{self, KeyShape, Shape},
    source::{Content, Node},
};
use crate::{
    CheckpointRef, ComponentError, ConfidenceSignal, ObservableRef, SelectionStrategy, SignalRef,
    registry::{Kind, Registry, RegistryError, nearest},
};

/// The strategy of a plan, the signals it reads and the columns these read.
pub struct Resolved {
    /// What decides.
    pub strategy: Box<dyn SelectionStrategy>,
    /// The signals it reads, each under the name of its column, in the strategy's order.
    pub signals: Vec<(SignalRef, Box<dyn ConfidenceSignal>)>,
    /// The columns that the signals read.
    pub observables: BTreeSet<ObservableRef>,
}

impl std::fmt::Debug for Resolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let signals: Vec<&SignalRef> = self.signals.iter().map(|(id, _)| id).collect();
        f.debug_struct("Resolved")
            .field("signals", &signals)
            .field("observables", &self.observables)
            .finish_non_exhaustive()
    }
}

/// Makes the components that `plan` names.
///
/// # Errors
/// Every unknown name, refused option, unknown signal and checkpoint that the run does not have.
pub fn components(plan: &RunPlan, registry: &Registry) -> Result<Resolved, PlanErrors> {
    let mut problems = Problems::default();
    let resolved = resolve(plan, registry, &mut |key, problem| {
        problems.push(None, key, problem);
    });
    problems.finish(resolved)
}

/// Makes the strategy `selection` and its signals without a plan around them: for a selection on
/// stores that lie there. Which checkpoints there are is for the caller to check.
///
/// # Errors
/// Every unknown name, refused option and unknown signal.
pub fn selection_components(
    selection: &SelectionPlan,
    signals: &BTreeMap<String, SignalPlan>,
    registry: &Registry,
) -> Result<Resolved, PlanErrors> {
    let mut problems = Problems::default();
    let named = Named {
        selection,
        signals,
        missing: &|_| None,
    };
    let resolved = named.resolve(registry, &mut |key, problem| {
        problems.push(None, key, problem);
    });
    problems.finish(resolved)
}

/// `None` when the strategy or one of its signals cannot be made; each problem is reported.
pub(super) fn resolve(
    plan: &RunPlan,
    registry: &Registry,
    report: &mut dyn FnMut(String, Problem),
) -> Option<Resolved> {
    if !plan.student.adapter.is_empty()
        && let Err(error) = registry.get(Kind::Adapter, &plan.student.adapter)
    {
        report("student.adapter".to_owned(), Problem::Component(error));
    }
    let named = Named {
        selection: &plan.selection,
        signals: &plan.signals,
        missing: &|at| missing_checkpoint(plan, at),
    };
    named.resolve(registry, report)
}

/// What names components, and says why a checkpoint is missing if it is.
struct Named<'p> {
    selection: &'p SelectionPlan,
    signals: &'p BTreeMap<String, SignalPlan>,
    missing: &'p dyn Fn(&CheckpointRef) -> Option<String>,
}

impl Named<'_> {
    fn resolve(
        &self,
        registry: &Registry,
        report: &mut dyn FnMut(String, Problem),
    ) -> Option<Resolved> {
        for (id, signal) in self.signals {
            if let Err(error) = registry.signal(&signal.kind, &signal.options) {
                let key = refused_key(&format!("signals.{id}"), "kind", &error);
                report(key, Problem::Component(error));
            }
        }
        let selection = self.selection;
        let strategy = match registry.strategy(&selection.strategy, &selection.options) {
            Ok(strategy) => strategy,
            Err(error) => {
                let key = refused_key("selection", "strategy", &error);
                report(key, Problem::Component(error));
                return None;
            }
        };

        let mut complete = true;
        let mut signals: Vec<(SignalRef, Box<dyn ConfidenceSignal>)> = Vec::new();
        let mut observables = BTreeSet::new();
        for id in strategy.needs() {
            if signals.iter().any(|(known, _)| *known == id) {
                continue;
            }
            // The option that names the signal, where there is one, is where to look.
            let named = |v: &Value| v.as_str() == Some(id.as_str());
            let option = selection.options.iter().find(|(_, v)| named(v));
            let key = join("selection", option.map_or("strategy", |(k, _)| k.as_str()));
            let signal = match self.make_signal(registry, &id) {
                Ok(signal) => signal,
                Err(problem) => {
                    // A refused [signals.ID] table has been reported above.
                    if !self.signals.contains_key(id.as_str()) {
                        report(key, problem);
                    }
                    complete = false;
                    continue;
                }
            };
            for column in signal.needs() {
                if let Some(accepted) = (self.missing)(&column.at) {
                    let problem = Problem::UnknownCheckpoint {
                        signal: id.to_string(),
                        column: column.to_string(),
                        accepted,
                    };
                    report(key.clone(), problem);
                    complete = false;
                }
                observables.insert(column);
            }
            signals.push((id, signal));
        }
        complete.then_some(Resolved {
            strategy,
            signals,
            observables,
        })
    }

    /// Tries the three spellings of [`SignalRef`].
    fn make_signal(
        &self,
        registry: &Registry,
        id: &SignalRef,
    ) -> Result<Box<dyn ConfidenceSignal>, Problem> {
        let component = |error| Problem::Component(error);
        if let Some(signal) = self.signals.get(id.as_str()) {
            return registry
                .signal(&signal.kind, &signal.options)
                .map_err(component);
        }
        let known = |name: &str| registry.get(Kind::Signal, name).is_ok();
        if let Some((name, at)) = id.as_str().split_once('@')
            && known(name)
        {
            let mut options = toml::Table::new();
            options.insert("at".to_owned(), Value::String(at.to_owned()));
            return registry.signal(name, &options).map_err(component);
        }
        if known(id.as_str()) {
            return registry
                .signal(id.as_str(), &toml::Table::new())
                .map_err(component);
        }
        let declared: Vec<String> = self.signals.keys().cloned().collect();
        let registered: Vec<String> = registry
            .of_kind(Kind::Signal)
            .map(|signal| signal.name.to_owned())
            .collect();
        let names = declared.iter().chain(&registered).map(String::as_str);
        Err(Problem::UnknownSignal {
            strategy: self.selection.strategy.clone(),
            signal: id.to_string(),
            nearest: nearest(id.as_str(), names).map(str::to_owned),
            declared,
            known: registered,
        })
    }
}

/// Why the run does not have the checkpoint, if it does not.
fn missing_checkpoint(plan: &RunPlan, at: &CheckpointRef) -> Option<String> {
    match at {
        CheckpointRef::Reference if plan.selection.selector().is_some() => Some(
            "beside selection.from there is no reference; use base, bottleneck, ...".to_owned(),
        ),
        CheckpointRef::Reference => (!plan.reference.is_named()).then(|| {
            "name a model of the same tokenizer in reference.path, or its token store in \
             reference.store"
                .to_owned()
        }),
        // Which checkpoints another run has, its folder says.
        _ if plan.selection.selector().is_some() => None,
        CheckpointRef::Step(step) => (!has_checkpoint(plan, *step)).then(|| checkpoints(plan)),
        _ => None,
    }
}

/// The key that a component's refusal is about.
fn refused_key(at: &str, name: &str, error: &RegistryError) -> String {
    match error {
        RegistryError::Component(ComponentError::Options { key, .. }) => {
            // serde_path_to_error writes `list[0]`; keys here are dotted throughout.
            let key = key.replace('[', ".").replace(']', "");
            if key.is_empty() {
                at.to_owned()
            } else {
                join(at, &key)
            }
        }
        _ => join(at, name),
    }
}

/// Walks the options of every component of the raw plan along their schemas, so that each unknown
/// key and wrong type is noted with its line.
///
/// An option that came with another component, and that the one chosen over it does not have, is
/// dropped with a warning: `--set selection.strategy=all` alone has to work.
pub(super) fn conform_components(
    root: &mut Node,
    registry: &Registry,
    problems: &mut Problems,
    warnings: &mut Vec<PlanWarning>,
) {
    let Some(table) = root.as_table_mut() else {
        return;
    };
    let mut conform = |node: &mut Node, beside: &[&str], kind: Kind, at: &str| {
        conform_component(node, beside, kind, at, registry, problems, warnings);
    };
    if let Some(selection) = table.get_mut("selection") {
        conform(
            selection,
            &["strategy", "from"],
            Kind::Strategy,
            "selection",
        );
    }
    let signals = table.get_mut("signals").and_then(Node::as_table_mut);
    for (id, signal) in signals.into_iter().flatten() {
        conform(signal, &["kind"], Kind::Signal, &format!("signals.{id}"));
    }
}

/// `beside`: the keys of the table that are no options; the first names the component.
fn conform_component(
    node: &mut Node,
    beside: &[&str],
    kind: Kind,
    at: &str,
    registry: &Registry,
    problems: &mut Problems,
    warnings: &mut Vec<PlanWarning>,
) {
    let Some(table) = node.as_table_mut() else {
        return;
    };
    let Some(name_node) = table.get(beside[0]).cloned() else {
        return;
    };
    let Content::Scalar(Value::String(name)) = &name_node.content else {
        return;
    };
    // An unknown name is reported when the component is made.
    let Ok(registration) = registry.get(kind, name) else {
        return;
    };
    let schema = (registration.schema)();
    let Shape::Table(mut shape) = Shape::of_schema(schema.as_value()) else {
        return;
    };
    // A schema without keys may be one that says nothing, e.g. of a hand-written reader; or it says
    // that there are none.
    let says_none = schema.get("additionalProperties") == Some(&serde_json::Value::Bool(false));
    shape.open |= shape.keys.is_empty() && !says_none;
    // They have been read with the plan; here they are known, so that one that is misspelt finds them.
    let known = beside.iter().map(|name| KeyShape {
        name: (*name).to_owned(),
        doc: String::new(),
        required: false,
        optional: false,
        default: shape::Default::None,
        shape: Shape::Any,
    });
    shape.keys.splice(0..0, known);
    let other = |value: &Value| value.as_str() != Some(name.as_str());
    if let Some((_, before)) = name_node.overrode.iter().find(|(_, value)| other(value)) {
        table.retain(|option, node| {
            let inherited = node.layer < name_node.layer;
            let keep = shape.open || shape.key(option).is_some() || !inherited;
            if !keep {
                warnings.push(PlanWarning {
                    place: Some(node.place.clone()),
                    key: join(at, option),
                    message: format!(
                        "dropped: it belongs to {}, and {name:?}, chosen at {}, has no such option",
                        before, name_node.place
                    ),
                });
            }
            keep
        });
    }
    conform_table(node, &shape, at, problems);
}

/// Warns of `[signals.ID]` tables that nobody reads.
pub(super) fn unused_signals(
    plan: &RunPlan,
    resolved: &Resolved,
    tree: &Node,
    warnings: &mut Vec<PlanWarning>,
) {
    for id in plan.signals.keys() {
        if !resolved.signals.iter().any(|(used, _)| used.as_str() == id) {
            let key = format!("signals.{id}");
            warnings.push(PlanWarning {
                place: tree.place_of(&key),
                message: format!("not read by the strategy {:?}", plan.selection.strategy),
                key,
            });
        }
    }
}
