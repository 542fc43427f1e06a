//! `--set KEY=VALUE` where there is no plan.

use t3s_core::toml::{Table, Value};

use crate::failure::Failure;

/// The key and the value of `text`; `example` shows how to write one. A bare word is a text, as on
/// the command line of `t3s run`.
pub fn pair<'t>(text: &'t str, example: &str) -> Result<(&'t str, Value), Failure> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Failure::usage(format!("--set {text}: write {example}")))?;
    let value = format!("v = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    Ok((key, value))
}
