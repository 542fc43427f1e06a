//! docs/strategies.md says what is registered: every name with every option, and no other.

use t3s_core::registry::{Kind, Registration, Registry};

const MANUAL: &str = include_str!("../../docs/strategies.md");
const EQUATIONS: &str = include_str!("../../docs/equations.md");

fn options(entry: &Registration) -> Vec<String> {
    let schema = (entry.schema)();
    let properties = schema.get("properties").and_then(|p| p.as_object());
    let names = properties.into_iter().flatten();
    names.map(|(name, _)| name.clone()).collect()
}

#[test]
fn every_strategy_has_its_five_lines() {
    let registry = Registry::linked().expect("no clash");
    let mut sections: Vec<(&str, &str)> = MANUAL
        .split("\n### `")
        .skip(1)
        .map(|section| section.split_once('`').expect("a name in code marks"))
        .collect();
    for entry in registry.of_kind(Kind::Strategy) {
        let at = sections.iter().position(|(name, _)| *name == entry.name);
        let (name, section) = sections.remove(at.expect(entry.name));
        let lines: Vec<&str> = section
            .lines()
            .filter(|line| line.starts_with("* **"))
            .collect();
        assert_eq!(lines.len(), 5, "{name}");
        for (line, title) in lines
            .iter()
            .zip(["Formula", "Source", "Needs", "Options", "When"])
        {
            assert!(
                line.starts_with(&format!("* **{title}**: ")),
                "{name}: {line}"
            );
        }
        let inherits = lines[3] == "* **Options**: as `t3s`";
        for option in options(entry) {
            let said = lines[3].contains(&format!("`{option}`"));
            assert!(said || inherits, "{name}: {option}");
            let listed = entry.summary.contains(option.as_str());
            assert!(listed, "{name}: its summary leaves {option} out");
        }
    }
    assert!(sections.is_empty(), "not registered: {sections:?}");
}

#[test]
fn every_signal_has_its_row() {
    let registry = Registry::linked().expect("no clash");
    let mut rows: Vec<&str> = MANUAL
        .split_once("## Signals")
        .expect("the chapter")
        .1
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    for entry in registry.of_kind(Kind::Signal) {
        let start = format!("| `{}` |", entry.name);
        let at = rows.iter().position(|row| row.starts_with(&start));
        let row = rows.remove(at.expect(entry.name));
        for option in options(entry) {
            assert!(row.contains(&format!("`{option}`")), "{row}: {option}");
        }
    }
    assert!(rows.is_empty(), "not registered: {rows:?}");
}

#[test]
fn formulas_that_are_referred_to_exist() {
    for part in MANUAL.split("**[").skip(1) {
        let id = part.split_once("]**").expect("closed").0;
        assert!(EQUATIONS.contains(&format!("\n**[{id}]**")), "{id}");
    }
}
