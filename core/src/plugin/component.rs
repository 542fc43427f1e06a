//! A plugin's signals and strategies as the host's traits.

use super::{
    call::{Instance, Library},
    describe::{SignalDescription, StrategyDescription},
};
use crate::{
    ComponentError, ConfidenceSignal, Declaration, ObservableRef, SelectContext, SelectionStrategy,
    SignalRef, TokenView, When,
};

/// The NaN that stands where nothing was written yet; no arithmetic gives this one.
const UNWRITTEN: u32 = 0x7fc0_7435;

/// A signal of a plugin. What it needs was asked once.
pub(super) struct LoadedSignal {
    instance: Instance,
    needs: Vec<ObservableRef>,
}

impl LoadedSignal {
    pub fn new(instance: Instance) -> Result<Self, ComponentError> {
        let needs = instance.describe::<SignalDescription>()?.needs();
        let who = &instance.who;
        let needs =
            needs.map_err(|error| ComponentError::Failed(format!("{who} needs: {error}")))?;
        Ok(Self { instance, needs })
    }
}

impl ConfidenceSignal for LoadedSignal {
    fn needs(&self) -> Vec<ObservableRef> {
        self.needs.clone()
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        run(&self.instance, tokens, None, out)
    }
}

/// A strategy of a plugin. What it says of itself was asked once.
pub(super) struct LoadedStrategy {
    instance: Instance,
    description: StrategyDescription,
}

impl LoadedStrategy {
    pub fn new(instance: Instance) -> Result<Self, ComponentError> {
        let description = instance.describe()?;
        Ok(Self {
            instance,
            description,
        })
    }
}

impl SelectionStrategy for LoadedStrategy {
    fn needs(&self) -> Vec<SignalRef> {
        self.description.needs()
    }

    fn when(&self) -> When {
        self.description.when()
    }

    fn declare(&self) -> Declaration {
        self.description.declaration()
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        run(&self.instance, tokens, Some(cx), out)
    }
}

/// Runs `instance`, and sees to it that it has written every number.
fn run(
    instance: &Instance,
    tokens: &TokenView<'_>,
    cx: Option<&SelectContext<'_>>,
    out: &mut [f32],
) -> Result<(), ComponentError> {
    out.fill(f32::from_bits(UNWRITTEN));
    instance.run(tokens, cx, out)?;
    // Without a way out of the loop it is a vector instruction.
    let unwritten = out
        .iter()
        .fold(0_usize, |n, v| n + usize::from(v.to_bits() == UNWRITTEN));
    if unwritten == 0 {
        return Ok(());
    }
    let first = out.iter().position(|v| v.to_bits() == UNWRITTEN);
    let row = first.expect("there is at least one");
    let (example, _) = tokens
        .examples()
        .find(|(_, rows)| rows.contains(&row))
        .expect("every row is an example's");
    Err(ComponentError::Failed(format!(
        "{} left {unwritten} of {} numbers unwritten, the first at example {example}, position {}",
        instance.who,
        out.len(),
        tokens.positions()[row]
    )))
}

/// Makes a signal.
///
/// # Errors
/// When the plugin refuses the options, or asks for columns that do not exist.
pub(super) fn signal(
    library: Library,
    component: &'static super::abi::T3sComponent,
    who: &str,
    options: &toml::Table,
) -> Result<Box<dyn ConfidenceSignal>, ComponentError> {
    let instance = Instance::create(library, component, who, options)?;
    Ok(Box::new(LoadedSignal::new(instance)?))
}

/// Makes a strategy.
///
/// # Errors
/// When the plugin refuses the options or does not say what it needs.
pub(super) fn strategy(
    library: Library,
    component: &'static super::abi::T3sComponent,
    who: &str,
    options: &toml::Table,
) -> Result<Box<dyn SelectionStrategy>, ComponentError> {
    let instance = Instance::create(library, component, who, options)?;
    Ok(Box::new(LoadedStrategy::new(instance)?))
}
