//! A resolved plan as text and as a fingerprint.

use std::path::PathBuf;

use toml::{Table, Value};

use super::sections::RunPlan;
use crate::Fingerprint;

impl RunPlan {
    /// The plan as a file that says everything: loading it gives this plan again, from whatever
    /// folder, since paths are absolute in it.
    ///
    /// # Panics
    /// When the seed is above `i64::MAX`, which no TOML file can say.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.absolute().as_written()).expect("a table of plain values is TOML")
    }

    /// The same plan with absolute paths.
    #[must_use]
    pub fn absolute(&self) -> Self {
        let mut plan = self.clone();
        for path in plan.paths_mut() {
            if !path.as_os_str().is_empty()
                && let Ok(absolute) = std::path::absolute(&*path)
            {
                *path = absolute;
            }
        }
        plan
    }

    /// The fingerprint of everything but `out`.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut plan = self.clone();
        plan.out = PathBuf::new();
        Fingerprint::of_json(&plan)
    }

    /// The plan's tables as people write them: `[probe]` flat, options beside the component's
    /// name.
    ///
    /// # Panics
    /// When the seed is above `i64::MAX`, which no TOML file can say.
    pub fn as_written(&self) -> Table {
        let mut plan = Table::try_from(self).expect("plans have string keys and 64-bit numbers");
        if let Some(Value::Table(probe)) = plan.get_mut("probe")
            && let Some(Value::Table(training)) = probe.remove("training")
        {
            probe.extend(training);
            // Without this the probe would inherit `[train.lora]`.
            if self.probe.training.lora.is_none() && self.train.lora.is_some() {
                probe.insert("lora".to_owned(), Value::Boolean(false));
            }
        }
        if let Some(Value::Table(selection)) = plan.get_mut("selection") {
            scatter_options(selection);
        }
        if let Some(Value::Table(signals)) = plan.get_mut("signals") {
            for (_, signal) in signals.iter_mut() {
                if let Value::Table(signal) = signal {
                    scatter_options(signal);
                }
            }
        }
        plan
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [
            &mut self.out,
            &mut self.student.path,
            &mut self.data.train,
            &mut self.data.chat_template,
            &mut self.eval.data,
            &mut self.selection.from,
            &mut self.reference.path,
            &mut self.reference.store,
        ]
        .into_iter()
        .chain(&mut self.plugins.load)
    }
}

fn scatter_options(component: &mut Table) {
    if let Some(Value::Table(options)) = component.remove("options") {
        component.extend(options);
    }
}
