//! A strategy with a bug, where its option says.

use t3s_plugin::{
    register_strategy, ComponentError, Declaration, Scope, SelectContext, SelectionStrategy,
    SignalRef, TokenView, When,
};

/// Where the bug is.
#[derive(schemars::JsonSchema, serde::Deserialize)]
#[serde(from = "Options")]
struct Panicky {
    panic_in: String,
}

#[derive(schemars::JsonSchema, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    panic_in: String,
}

impl From<Options> for Panicky {
    fn from(options: Options) -> Self {
        assert!(options.panic_in != "new", "a bug in new");
        Self {
            panic_in: options.panic_in,
        }
    }
}

register_strategy!("panicky", Panicky, "has a bug");

impl SelectionStrategy for Panicky {
    fn needs(&self) -> Vec<SignalRef> {
        assert!(self.panic_in != "needs", "a bug in needs");
        Vec::new()
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        Declaration::new(Scope::PerExample)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let past = usize::from(self.panic_in == "select");
        for row in 0..out.len() {
            out[row + past] = f32::from(u8::from(tokens.eligible()[row]));
        }
        Ok(())
    }
}
