//! What the plugin boundary costs: the same strategy over 1 M tokens and six columns, linked and
//! loaded, turn about. One JSON line.
//!
//!     cargo bench -p t3s-benches --bench plugin -- [--tokens N] [--rounds N]

use std::{env, path::PathBuf, time::Instant};

use serde_json::json;
use t3s_benches::number;
use t3s_core::{
    CounterRng, SelectContext, SelectionStrategy, TokenTable, plugin, registry::Registry, toml,
};
use t3s_pipeline::bench::machine::Machine;
use t3s_plugin_blend::COLUMNS;

/// The library lies beside this program.
fn library() -> Result<PathBuf, Box<dyn std::error::Error>> {
    let program = env::current_exe()?;
    let folder = program.parent().ok_or("a program has a folder")?;
    let name = format!("libt3s_plugin_blend{}", env::consts::DLL_SUFFIX);
    let there = [folder.join(&name), folder.join("..").join(&name)];
    let found = there.into_iter().find(|path| path.is_file());
    Ok(found.ok_or_else(|| format!("no {name} beside {}", program.display()))?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (tokens, rounds) = (number("tokens", 1_000_000), number("rounds", 41));
    let table = table(tokens)?;
    let view = table.view();
    let linked = Registry::linked()?.strategy("blend", &toml::Table::new())?;
    let plugin = plugin::load(&library()?, None)?;
    let alone = plugin.add_to(Registry::from_entries([])?)?;
    let loaded = alone.strategy("blend", &toml::Table::new())?;

    let (mut a, mut b) = (vec![0.0; tokens], vec![0.0; tokens]);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds.max(1) {
        for (times, (strategy, out)) in times.iter_mut().zip([(&linked, &mut a), (&loaded, &mut b)])
        {
            let strategy: &dyn SelectionStrategy = strategy.as_ref();
            let start = Instant::now();
            strategy.select(&view, &SelectContext::recorded(0), out)?;
            times.push(start.elapsed().as_secs_f64() * 1e9 / tokens as f64);
        }
    }
    assert_eq!(a, b, "linked and loaded give the same weights");
    let [linked, loaded] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    let report = json!({
        "bench": "plugin",
        "tokens": tokens,
        "columns": COLUMNS.len(),
        "linked_ns_per_token": linked,
        "loaded_ns_per_token": loaded,
        "boundary_ns_per_token": loaded - linked,
        "machine": Machine::now(None),
    });
    println!("{report}");
    Ok(())
}

/// Examples of 5000 tokens, every tenth token a prompt's.
fn table(tokens: usize) -> Result<TokenTable, Box<dyn std::error::Error>> {
    let n = u32::try_from(tokens)?;
    let mut offsets: Vec<u32> = (0..n).step_by(5000).collect();
    let ids: Vec<u64> = (0..offsets.len() as u64).collect();
    offsets.push(n);
    let positions: Vec<u32> = (0..n).map(|row| row % 5000).collect();
    let eligible = (0..n).map(|row| row % 10 != 0).collect();
    let mut table = TokenTable::new(ids, offsets, vec![7; tokens], positions, eligible)?;
    for name in COLUMNS {
        let rng = CounterRng::new(1, name);
        let values = (0..tokens as u64).map(|row| rng.uniform(row, 0) as f32);
        table.insert(name, values.collect())?;
    }
    Ok(table)
}
