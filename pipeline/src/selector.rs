//! Another student's run, whose trajectory selects for this one: `[selection] from`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use t3s_core::{Corpus, Fingerprint, TokenTable};
use t3s_data::{
    Tokenizer,
    store::{self, StoreMeta},
};

use crate::{error::PipelineError, stage::Done, summary::Summary};

/// The plan's key that names it.
const KEY: &str = "selection.from";

/// A finished run.
pub struct Selector {
    folder: PathBuf,
    /// What it came to.
    pub summary: Summary,
    tokenizer: Tokenizer,
}

impl Selector {
    /// Reads the run in `folder`.
    ///
    /// # Errors
    /// When it is no run folder, or the run in it is not done.
    pub fn open(folder: &Path) -> Result<Self, PipelineError> {
        let refuse =
            |message: String| PipelineError::plan(KEY, format!("{}: {message}", folder.display()));
        let path = folder.join("summary.json");
        let text = fs::read(&path).map_err(|error| {
            refuse(format!(
                "summary.json: {error}; name the run folder of a student whose run is done (t3s run)"
            ))
        })?;
        let summary: Summary = serde_json::from_slice(&text).map_err(|error| {
            refuse(format!(
                "summary.json is not what this version wrote: {error}"
            ))
        })?;
        // The folder may have been moved since; its links go with it.
        let linked = folder.join("student");
        let student = if linked.is_dir() {
            &linked
        } else {
            &summary.student
        };
        let tokenizer = Tokenizer::load(student, None).map_err(PipelineError::data(KEY))?;
        Ok(Self {
            folder: folder.to_owned(),
            summary,
            tokenizer,
        })
    }

    /// Its stored stage `name`, if it has it; the key is that of the store in it.
    ///
    /// # Errors
    /// When the store in it cannot be read.
    pub(crate) fn stage(
        &self,
        name: &str,
        store: &str,
    ) -> Result<Option<Done<u64>>, PipelineError> {
        let known = self.summary.stages.iter().find(|cost| cost.stage == name);
        let Some(known) = known else {
            return Ok(None);
        };
        let folder = self
            .folder
            .join("stages")
            .join(format!("{name}-{}", known.key));
        let path = folder.join(store);
        let key = Fingerprint::of_file(&path).map_err(|e| PipelineError::io(&path, "read", e))?;
        Ok(Some(Done {
            output: 0,
            folder,
            key,
        }))
    }

    /// The refusal of a checkpoint that it did not score.
    pub(crate) fn lacks(&self, step: u64) -> PipelineError {
        let scored: Vec<&str> = self
            .summary
            .stages
            .iter()
            .filter_map(|cost| cost.stage.strip_prefix("score-"))
            .collect();
        PipelineError::plan(
            KEY,
            format!(
                "{}: the strategy reads step {step}, which that run did not score; it scored {}",
                self.folder.display(),
                scored.join(", ")
            ),
        )
    }

    /// Refuses a store that is not about the response tokens of `corpus`. What differs otherwise (a
    /// prompt's text, the data file) is returned in words.
    ///
    /// # Errors
    /// Names the first token that differs, as both students read it.
    pub fn agree(
        &self,
        (table, meta): (&TokenTable, &StoreMeta),
        corpus: &Corpus,
        tokenizer: &Tokenizer,
    ) -> Result<Option<String>, PipelineError> {
        let view = table.view();
        let rows: BTreeMap<u64, std::ops::Range<usize>> = view.examples().collect();
        let same_tokenizer = tokenizer.fingerprint() == self.tokenizer.fingerprint();
        let mut known = BTreeSet::new();
        for example in &corpus.examples {
            let at = |id, position| Place {
                example: id,
                position,
            };
            // The first token of a text has no row where nothing before it could predict it.
            let here = (1..example.n_tokens())
                .filter(|position| example.trainable[*position])
                .map(|position| (position, example.ids[position]));
            let there = rows
                .get(&example.id)
                .cloned()
                .unwrap_or(0..0)
                .map(|row| (view.positions()[row] as usize, view.token_ids()[row]))
                .filter(|(position, _)| *position > 0);
            let (mut here, mut there) = (here, there);
            loop {
                let (ours, theirs) = (here.next(), there.next());
                let position = match (ours, theirs) {
                    (None, None) => break,
                    (Some((a, _)), Some((b, _))) => a.min(b),
                    (Some((a, _)), None) | (None, Some((a, _))) => a,
                };
                // Equal ids mean equal texts where the vocabularies are one.
                let differs = ours != theirs
                    || ours.is_some_and(|(_, id)| {
                        !same_tokenizer
                            && known.insert(id)
                            && text(tokenizer, Some(id)) != text(&self.tokenizer, Some(id))
                    });
                if differs {
                    let of = |token: Option<(usize, u32)>| {
                        token.filter(|(p, _)| *p == position).map(|(_, id)| id)
                    };
                    return Err(self.other_token(
                        at(example.id, position),
                        text(tokenizer, of(ours)),
                        text(&self.tokenizer, of(theirs)),
                    ));
                }
            }
        }
        let strangers = rows
            .keys()
            .filter(|id| !corpus.examples.iter().any(|example| example.id == **id));
        if let Some(id) = strangers.min() {
            return Err(PipelineError::plan(
                KEY,
                format!(
                    "{}: it has tokens of example {id}, which [data] here does not have; both runs \
                     need the same data, data.limit, data.filter and data.max_tokens",
                    self.folder.display()
                ),
            ));
        }
        let (a, b) = (&meta.hashes, &corpus.hashes);
        let odd = [
            ("the data file", a.data != b.data),
            ("the chat template", a.chat_template != b.chat_template),
        ];
        let odd: Vec<&str> = odd
            .iter()
            .filter(|(_, odd)| *odd)
            .map(|(w, _)| *w)
            .collect();
        Ok((!odd.is_empty()).then(|| {
            format!(
                "{}: {} of that run is another; the response tokens are the same",
                self.folder.display(),
                odd.join(" and ")
            )
        }))
    }

    fn other_token(&self, at: Place, here: String, there: String) -> PipelineError {
        PipelineError::plan(
            KEY,
            format!(
                "{}: its tokens are not this student's: example {}, position {}: {here} here, {there} \
                 there; both runs need the same data, tokenizer and chat template",
                self.folder.display(),
                at.example,
                at.position
            ),
        )
    }

    /// The tokens of its stage `score-base`, with what they were made under.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn tokens(&self) -> Result<(TokenTable, StoreMeta), PipelineError> {
        let name = "tokens.parquet";
        let stage = self
            .stage("score-base", name)?
            .ok_or_else(|| self.lacks(0))?;
        store::read_table(&stage.folder.join(name)).map_err(PipelineError::data(KEY))
    }
}

/// Where two students differ.
struct Place {
    example: u64,
    position: usize,
}

/// A token in words.
fn text(tokenizer: &Tokenizer, id: Option<u32>) -> String {
    match id {
        None => "no response token".to_owned(),
        Some(id) => match tokenizer.decode(&[id], false) {
            Ok(text) => format!("{text:?} (id {id})"),
            Err(_) => format!("id {id}"),
        },
    }
}
