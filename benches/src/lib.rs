//! What selection and plugins cost. What a model costs is measured by `t3s bench`; its peers are in
//! `peers/`.

use std::error::Error;

use t3s_core::{CounterRng, DecoderSpec, HfConfig, registry::Registry};

/// The decoder that `config`, a `config.json`, describes to the model adapter of name `adapter`.
///
/// # Errors
/// When the adapter refuses it.
pub fn decoder_spec(
    adapter: &str,
    config: serde_json::Value,
) -> Result<DecoderSpec, Box<dyn Error>> {
    let config = HfConfig(serde_json::from_value(config)?);
    Ok(Registry::linked()?.adapter(adapter)?.decoder(&config)?)
}

/// `n` token ids below `vocab`, drawn by `seed`.
pub fn text(seed: u64, vocab: usize, n: usize) -> Vec<u32> {
    let rng = CounterRng::new(seed, "bench-text");
    let id = |at: u64| (rng.bits(0, at) % vocab as u64) as u32;
    (0..n as u64).map(id).collect()
}

/// The value of `--name` on the command line of a benchmark.
pub fn argument(name: &str) -> Option<String> {
    let flag = format!("--{name}");
    let mut arguments = std::env::args().skip_while(|argument| *argument != flag);
    arguments.nth(1)
}

/// The number after `--name`, or `default`.
///
/// # Panics
/// When it is no number.
pub fn number(name: &str, default: usize) -> usize {
    argument(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("--{name} {text}: not a number"))
    })
}
