//! The tokens of a run: what was recorded of each, its weight and its text.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader},
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::Value;
use t3s_core::{CheckpointRef, TokenTable, TokenView};
use t3s_data::{Tokenizer, store};
use t3s_pipeline::{
    PipelineError,
    corpus::{PROMPTS, Prompt},
    recorded::RecordedRun,
    select::{Scored, join},
};

use crate::{column::Column, error::ReportError};

/// Every response token of a run, with its columns.
pub struct Tokens {
    table: TokenTable,
    /// Weight first, then what it may be coloured by.
    pub columns: Vec<Column>,
    /// `[tokens]`, where tokens were selected.
    pub weights: Option<Vec<f32>>,
    /// Of the run's tokenizer.
    pub tokenizer: Option<Tokenizer>,
    prompts: HashMap<u64, Prompt>,
}

/// One example's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Row number in the data.
    pub id: u64,
    /// Rows of the table.
    pub rows: Range<usize>,
    /// What each token adds to the text; the ids where there is no tokenizer.
    pub pieces: Vec<String>,
    /// Indices into `pieces` before which something that is not trained on was left out.
    pub gaps: Vec<usize>,
}

impl Tokens {
    /// The tokens of `run`: of its scored checkpoints and its selection, as far as they are there;
    /// `None` where nothing was scored.
    ///
    /// # Errors
    /// When a store that is said to be there cannot be read.
    pub fn of_run(run: &RecordedRun) -> Result<Option<Self>, ReportError> {
        let mut scored: Vec<(CheckpointRef, TokenTable)> = Vec::new();
        let bottleneck = run.bottleneck.as_ref().map(|found| found.step);
        let stages = [
            (CheckpointRef::Base, Some("score-base".to_owned())),
            (
                CheckpointRef::Bottleneck,
                bottleneck.map(|step| format!("score-step-{step:06}")),
            ),
        ];
        for (at, stage) in stages {
            let Some(folder) = stage.and_then(|stage| run.done(&stage)) else {
                continue;
            };
            let (table, _) = store::read_table(&folder.join("tokens.parquet"))?;
            scored.push((at, table));
        }
        let selection = match run.done("select") {
            Some(folder) => Some(store::read_selection(&folder.join("selection.parquet"))?),
            None => None,
        };
        if scored.is_empty() {
            return Ok(None);
        }
        let named: Vec<Scored<'_>> = scored
            .iter()
            .map(|(at, table)| Scored {
                names: vec![at.clone()],
                table,
            })
            .collect();
        let mut tokens = Self::new(join(&named)?, tokenizer_of(run)?);
        if let Some((signals, weights, _)) = selection
            && signals.view().token_ids() == tokens.table.view().token_ids()
        {
            tokens.add_selection(&signals, weights.as_slice());
        }
        if let Some(folder) = run.done("corpus") {
            tokens.prompts = read_prompts(&folder.join(PROMPTS))?;
        }
        Ok(Some(tokens))
    }

    /// The tokens of a store or a selection that lies at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or `tokenizer` is not the one it was made with.
    pub fn of_file(path: &Path, tokenizer: Option<Tokenizer>) -> Result<Self, ReportError> {
        let (table, weights, meta) = match store::read_selection(path) {
            Ok((signals, weights, meta)) => (signals, Some(weights), meta),
            // A store has no weights; what else is wrong with it is found again.
            Err(_) => {
                let (table, meta) = store::read_table(path)?;
                (table, None, meta)
            }
        };
        if let Some(tokenizer) = &tokenizer
            && tokenizer.fingerprint() != meta.hashes.tokenizer
        {
            return Err(ReportError::Missing(format!(
                "{}: it was made with another tokenizer than the one given (fingerprint {} against \
                 {})",
                path.display(),
                meta.hashes.tokenizer.short(),
                tokenizer.fingerprint().short()
            )));
        }
        let bare = TokenTable::clone(&table);
        let mut tokens = Self::new(table, tokenizer);
        if let Some(weights) = weights {
            tokens.columns.clear();
            tokens.add_selection(&bare, weights.as_slice());
        }
        Ok(tokens)
    }

    fn new(table: TokenTable, tokenizer: Option<Tokenizer>) -> Self {
        let view = table.view();
        let mut columns = Vec::new();
        if let (Ok(base), Ok(bottleneck)) =
            (view.column("logp@base"), view.column("logp@bottleneck"))
        {
            let delta = base.iter().zip(bottleneck).map(|(a, b)| b - a).collect();
            columns.push(Column::new("delta-c", delta));
        }
        for (name, values) in view.columns() {
            columns.push(Column::new(name, values.to_vec()));
        }
        Self {
            columns,
            weights: None,
            tokenizer,
            prompts: HashMap::new(),
            table,
        }
    }

    /// Tokens that lie in memory, without text: the columns of `table`, and weights.
    pub fn of_columns(table: TokenTable, weights: Option<Vec<f32>>) -> Self {
        let mut tokens = Self::new(table, None);
        if let Some(weights) = weights {
            tokens
                .columns
                .insert(0, Column::new("weight", weights.clone()));
            tokens.weights = Some(weights);
        }
        tokens
    }

    /// With another tokenizer, or with one.
    #[must_use]
    pub fn with_tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    fn add_selection(&mut self, signals: &TokenTable, weights: &[f32]) {
        self.weights = Some(weights.to_vec());
        self.columns
            .insert(0, Column::new("weight", weights.to_vec()));
        for (name, values) in signals.view().columns() {
            // A signal that is a recorded column under another name is shown once.
            let known = self.columns.iter().any(|column| column.values == *values);
            if !known {
                let name = format!("signal {name}");
                self.columns.push(Column::new(&name, values.to_vec()));
            }
        }
    }

    /// The table behind it.
    pub fn view(&self) -> TokenView<'_> {
        self.table.view()
    }

    /// The column `name`.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// What the example `id` asks, where the run wrote it down.
    pub fn prompt(&self, id: u64) -> Option<&Prompt> {
        self.prompts.get(&id)
    }

    /// The `index`-th example.
    ///
    /// # Errors
    /// When its tokens cannot be decoded.
    pub fn trace(&self, index: usize) -> Result<Trace, ReportError> {
        let view = self.table.view();
        let id = view.example_ids()[index];
        let rows = view.offsets()[index] as usize..view.offsets()[index + 1] as usize;
        let ids = &view.token_ids()[rows.clone()];
        let positions = &view.positions()[rows.clone()];
        let follows = |i: &usize| *i > 0 && positions[*i] != positions[i - 1] + 1;
        let gaps: Vec<usize> = (0..ids.len()).filter(follows).collect();
        let mut pieces = Vec::with_capacity(ids.len());
        let ends = gaps.iter().copied().chain([ids.len()]);
        let mut start = 0;
        for end in ends {
            match &self.tokenizer {
                Some(tokenizer) => pieces.extend(tokenizer.pieces(&ids[start..end])?),
                None => pieces.extend(ids[start..end].iter().map(|id| format!("{id} "))),
            }
            start = end;
        }
        Ok(Trace {
            id,
            rows,
            pieces,
            gaps,
        })
    }

    /// The text of each token of the vocabulary that occurs, on its own, and whether it is special.
    ///
    /// # Errors
    /// When one cannot be decoded.
    pub fn vocabulary(&self) -> Result<BTreeMap<u32, (String, bool)>, ReportError> {
        let mut known = BTreeMap::new();
        let Some(tokenizer) = &self.tokenizer else {
            return Ok(known);
        };
        for id in self.table.view().token_ids() {
            if !known.contains_key(id) {
                let text = tokenizer.decode(&[*id], false)?;
                known.insert(*id, (text, tokenizer.is_special(*id)));
            }
        }
        Ok(known)
    }
}

/// The tokenizer of `run`: beside its trained student, or where its plan has the student.
///
/// # Errors
/// When there is one and it cannot be read.
pub fn tokenizer_of(run: &RecordedRun) -> Result<Option<Tokenizer>, ReportError> {
    let planned = run
        .plan()
        .ok()
        .and_then(|text| text.parse::<toml::Table>().ok())
        .and_then(|plan| Some(plan.get("student")?.get("path")?.as_str()?.to_owned()))
        .map(PathBuf::from);
    let folders = [Some(run.folder.join("student")), planned];
    for folder in folders.into_iter().flatten() {
        if folder.join("tokenizer.json").is_file() {
            return Ok(Some(Tokenizer::load(&folder, None)?));
        }
    }
    Ok(None)
}

fn read_prompts(path: &Path) -> Result<HashMap<u64, Prompt>, ReportError> {
    // Runs of earlier versions have none.
    let Ok(file) = fs::File::open(path) else {
        return Ok(HashMap::new());
    };
    let mut prompts = HashMap::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|source| PipelineError::Io {
            path: path.to_owned(),
            action: "read",
            source,
        })?;
        if let Ok(prompt) = serde_json::from_str::<Prompt>(&line) {
            prompts.insert(prompt.id, prompt);
        }
    }
    Ok(prompts)
}

/// A JSON number with at most three significant digits.
pub(crate) fn rounded(value: f32) -> Value {
    if !value.is_finite() {
        return Value::Null;
    }
    let text = format!("{value:.2e}");
    let value: f64 = text.parse().unwrap_or(0.0);
    if value == value.trunc() && value.abs() < 1e15 {
        Value::from(value as i64)
    } else {
        Value::from(value)
    }
}
