//! What is varied: grids of values and named cells, as overrides of the plan.

use std::{collections::BTreeSet, fs, path::Path};

use toml::{Table, Value};

use super::AblateError;

/// A variant of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Its name in tables.
    pub name: String,
    /// What it overrides, `KEY=VALUE`.
    pub overrides: Vec<String>,
}

/// One key with the values it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// A dotted key of the plan.
    pub key: String,
    /// TOML values, or words.
    pub values: Vec<String>,
}

/// Reads `KEY=A,B,C`.
///
/// # Errors
/// When there is no key or no value.
pub fn parse_grid(text: &str) -> Result<Grid, AblateError> {
    let refused = |what: &str| {
        AblateError::Grid(format!(
            "--grid {text:?} {what}; write KEY=A,B,C, e.g. --grid selection.strategy=t3s,all"
        ))
    };
    let (key, values) = text.split_once('=').ok_or_else(|| refused("has no ="))?;
    let values = split(values).map_err(|what| refused(&what))?;
    if key.trim().is_empty() || values.iter().any(String::is_empty) {
        return Err(refused("lacks a key or a value"));
    }
    Ok(Grid {
        key: key.trim().to_owned(),
        values,
    })
}

/// Reads `NAME:KEY=VALUE,KEY=VALUE`, or `NAME` for the plan as it is.
///
/// # Errors
/// When there is no name, or something between the commas is no override.
pub fn parse_cell(text: &str) -> Result<Cell, AblateError> {
    let refused = |what: &str| {
        AblateError::Grid(format!(
            "--cell {text:?} {what}; write NAME:KEY=VALUE,KEY=VALUE, e.g. --cell \
             low:selection.strategy=static-confidence,selection.mask=low"
        ))
    };
    let (name, rest) = text.split_once(':').unwrap_or((text, ""));
    if name.trim().is_empty() || name.contains('=') {
        return Err(refused("has no name before a colon"));
    }
    let overrides = match rest.trim() {
        "" => Vec::new(),
        rest => split(rest).map_err(|what| refused(&what))?,
    };
    if let Some(pair) = overrides.iter().find(|pair| !pair.contains('=')) {
        return Err(refused(&format!("has {pair:?}, which is no KEY=VALUE")));
    }
    Ok(Cell {
        name: name.trim().to_owned(),
        overrides,
    })
}

/// Reads a file of cells: each table of `[cell]` is named like a cell and is laid over the plan,
/// `[cell.low.selection]` with `strategy = "static-confidence"` and `mask = "low"`. Paths in it are
/// relative to the working directory, as on the command line.
///
/// # Errors
/// When the file cannot be read, is no TOML, or has something besides such tables.
pub fn read_cells(path: &Path) -> Result<Vec<Cell>, AblateError> {
    let refused = |what: String| AblateError::Grid(format!("cells in {}: {what}", path.display()));
    let text = fs::read_to_string(path).map_err(|e| refused(e.to_string()))?;
    let mut file: Table = toml::from_str(&text).map_err(|e| refused(e.to_string()))?;
    let cells = match (file.remove("cell"), file.keys().next()) {
        (Some(Value::Table(cells)), None) => cells,
        (_, Some(other)) => {
            return Err(refused(format!(
                "{other:?} is no key here; write one table per cell, [cell.NAME.selection]"
            )));
        }
        _ => return Err(refused("there is no [cell.NAME] table".to_owned())),
    };
    cells
        .into_iter()
        .map(|(name, plan)| {
            let mut overrides = Vec::new();
            let Value::Table(plan) = plan else {
                return Err(refused(format!("cell.{name} is no table")));
            };
            flatten("", &plan, &mut overrides);
            Ok(Cell { name, overrides })
        })
        .collect()
}

/// Leaves as overrides, so that tables are merged key by key.
fn flatten(at: &str, table: &Table, overrides: &mut Vec<String>) {
    for (key, value) in table {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let key = match !key.is_empty() && key.chars().all(plain) {
            true => key.clone(),
            false => Value::String(key.clone()).to_string(),
        };
        let key = match at {
            "" => key,
            at => format!("{at}.{key}"),
        };
        match value {
            Value::Table(inner) if !inner.is_empty() => flatten(&key, inner, overrides),
            value => overrides.push(format!("{key}={value}")),
        }
    }
}

/// Every combination of one of `cells` (the plan itself, where there are none) and one value of
/// each of `grids`, the last grid fastest.
///
/// # Errors
/// When a key is varied twice, a seed is, or two combinations have one name.
pub fn combine(cells: Vec<Cell>, grids: &[Grid]) -> Result<Vec<Cell>, AblateError> {
    let mut keys = BTreeSet::new();
    for grid in grids {
        if !keys.insert(grid.key.as_str()) {
            return Err(AblateError::Grid(format!(
                "--grid {} is given twice; put all its values behind one",
                grid.key
            )));
        }
    }
    let own_names = !cells.is_empty();
    let mut combined = match own_names {
        true => cells,
        false => vec![Cell {
            name: String::new(),
            overrides: Vec::new(),
        }],
    };
    for grid in grids {
        combined = combined
            .iter()
            .flat_map(|cell| {
                grid.values.iter().map(|value| {
                    let mut cell = cell.clone();
                    if !cell.name.is_empty() {
                        cell.name += ", ";
                    }
                    cell.name += &label(grid, value, grids);
                    cell.overrides.push(format!("{}={value}", grid.key));
                    cell
                })
            })
            .collect();
    }
    if let [only] = &mut combined[..]
        && only.name.is_empty()
    {
        only.name = "plan".to_owned();
    }
    let mut names = BTreeSet::new();
    for cell in &combined {
        if !names.insert(cell.name.as_str()) {
            return Err(AblateError::Grid(format!(
                "two cells are called {:?}",
                cell.name
            )));
        }
        let key = |pair: &String| pair.split('=').next().unwrap_or("").trim().to_owned();
        let own = |key: &String| ["seed", "out", "name"].contains(&key.as_str());
        if let Some(key) = cell.overrides.iter().map(key).find(own) {
            return Err(AblateError::Grid(format!(
                "the cell {:?} sets {key}, which each of its runs has for itself; seeds are varied \
                 with --seeds",
                cell.name
            )));
        }
    }
    Ok(combined)
}

/// `t3s`, `learning_rate=1e-3`.
fn label(grid: &Grid, value: &str, grids: &[Grid]) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let value = value.trim_matches(['"', '\'']);
    if grid.key == "selection.strategy" {
        return value.to_owned();
    }
    let short = last(&grid.key);
    let alike = grids.iter().filter(|other| last(&other.key) == short);
    match alike.count() {
        1 => format!("{short}={value}"),
        _ => format!("{}={value}", grid.key),
    }
}

/// Splits at commas that stand in no brackets and no quotes.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let (mut depth, mut quote) = (0_i32, None);
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && depth == 0 && quote.is_none() {
            parts.push(String::new());
            continue;
        }
        match quote {
            // Only basic strings know escapes.
            Some('"') if c == '\\' && !escaped => escaped = true,
            Some(open) => {
                if c == open && !escaped {
                    quote = None;
                }
                escaped = false;
            }
            None => match c {
                '"' | '\'' => quote = Some(c),
                '[' | '{' => depth += 1,
                ']' | '}' => depth -= 1,
                _ => {}
            },
        }
        parts.last_mut().expect("never empty").push(c);
    }
    if depth != 0 || quote.is_some() {
        return Err("has a bracket or a quote that is not closed".to_owned());
    }
    Ok(parts
        .into_iter()
        .map(|part| part.trim().to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(cells: &[Cell]) -> Vec<&str> {
        cells.iter().map(|cell| cell.name.as_str()).collect()
    }

    #[test]
    fn commas_in_values_do_not_split() {
        let grid = parse_grid(r#"train.lora.targets=["q_proj", "k_proj"],['o_proj'],"a,\"b""#);
        let values = [r#"["q_proj", "k_proj"]"#, "['o_proj']", r#""a,\"b""#];
        assert_eq!(grid.unwrap().values, values);
        for bad in ["selection.strategy", "=a", "a=", "a=1,,2", "a=[1,2"] {
            assert!(parse_grid(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_combination_is_a_cell_with_a_short_name() {
        let grids = [
            parse_grid("selection.strategy=t3s,all").unwrap(),
            parse_grid("train.steps=10,20").unwrap(),
        ];
        let cells = combine(Vec::new(), &grids).unwrap();
        assert_eq!(
            names(&cells),
            [
                "t3s, steps=10",
                "t3s, steps=20",
                "all, steps=10",
                "all, steps=20"
            ]
        );
        assert_eq!(
            cells[2].overrides,
            ["selection.strategy=all", "train.steps=10"]
        );
        let same = [
            parse_grid("train.steps=1").unwrap(),
            parse_grid("probe.steps=2").unwrap(),
        ];
        assert_eq!(
            names(&combine(Vec::new(), &same).unwrap()),
            ["train.steps=1, probe.steps=2"]
        );
        assert_eq!(names(&combine(Vec::new(), &[]).unwrap()), ["plan"]);
    }

    #[test]
    fn named_cells_are_crossed_with_grids() {
        let cells = [
            "low:selection.strategy=static-confidence,selection.mask=low",
            "as-is",
        ];
        let cells = cells.map(|cell| parse_cell(cell).unwrap());
        assert_eq!(cells[0].overrides.len(), 2);
        let grid = parse_grid("train.learning_rate=1e-3,1e-4").unwrap();
        let crossed = combine(cells.to_vec(), &[grid]).unwrap();
        assert_eq!(names(&crossed)[3], "as-is, learning_rate=1e-4");
        assert_eq!(crossed[1].overrides.len(), 3);
    }

    #[test]
    fn what_runs_have_for_themselves_and_doubles_are_refused() {
        let grid = |text| parse_grid(text).unwrap();
        assert!(combine(Vec::new(), &[grid("seed=1,2")]).is_err());
        assert!(combine(Vec::new(), &[grid("train.steps=1,1")]).is_err());
        assert!(combine(Vec::new(), &[grid("train.steps=1"), grid("train.steps=2")]).is_err());
        for bad in ["", ":a=1", "a=1", "name:a"] {
            assert!(parse_cell(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_cells_is_laid_over_the_plan() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cells.toml");
        let text = "[cell.low.selection]\nstrategy = \"static-confidence\"\nmask = \"low\"\n\
                    [cell.plain]\ntrain.lora.targets = [\"q_proj\"]\n";
        fs::write(&path, text).unwrap();
        let cells = read_cells(&path).unwrap();
        assert_eq!(names(&cells), ["low", "plain"]);
        assert_eq!(
            cells[0].overrides,
            [
                "selection.strategy=\"static-confidence\"",
                "selection.mask=\"low\""
            ]
        );
        assert_eq!(cells[1].overrides, ["train.lora.targets=[\"q_proj\"]"]);
        fs::write(&path, "[cels.low]\n").unwrap();
        let message = read_cells(&path).unwrap_err().to_string();
        assert!(message.contains("[cell.NAME.selection]"), "{message}");
    }
}
