//! Which tokens of a rendered conversation the assistant wrote, without `{% generation %}` tags in
//! the template.
//!
//! A turn begins where the conversation before it, rendered with the generation prompt, ends: so
//! what is learnt begins exactly where generation would. It ends with the first special token after
//! that (`<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`), which is learnt too: it is how a model says
//! that it is done. `<think>` and `</think>` are no special tokens and stay in.

use serde_json::Value;

use crate::{chat_template::ChatTemplate, error::DataError, tokenizer::Tokenizer};

/// A conversation in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokenized {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Which of them the assistant wrote.
    pub trainable: Vec<bool>,
    /// Tokens before the assistant's last turn.
    pub prompt_len: usize,
}

/// Renders and tokenises `messages`. What comes after the assistant's last turn is left out:
/// nothing that is learnt can see it. Without any assistant turn everything is prompt, with the
/// generation prompt at its end.
///
/// # Errors
/// When the template refuses the conversation or the tokenizer fails.
pub fn tokenize(messages: &[Value], tokenizer: &Tokenizer) -> Result<Tokenized, DataError> {
    let template = tokenizer.template()?;
    let turns: Vec<usize> = (0..messages.len())
        .filter(|index| messages[*index]["role"] == "assistant")
        .collect();
    let Some(&last) = turns.last() else {
        let ids = tokenizer.encode(&template.render(messages, true)?)?;
        return Ok(Tokenized {
            trainable: vec![false; ids.len()],
            prompt_len: ids.len(),
            ids,
        });
    };
    // A reply to the last turn would change what templates make of the turns before it.
    let messages = &messages[..=last];
    let text = template.render(messages, false)?;
    let mut out = Tokenized {
        ids: Vec::new(),
        trainable: Vec::new(),
        prompt_len: 0,
    };
    let mut done = 0;
    for (nth, turn) in turns.iter().enumerate() {
        let start = start_of(messages, *turn, &text, done, template)?;
        let bound = match turns.get(nth + 1) {
            Some(next) => end_of(messages, *turn, *next, &text, start, template)?,
            None => text.len(),
        };
        // Prompt and response are tokenised apart, as they are when the model answers by itself.
        out.push(&tokenizer.encode(&text[done..start])?, false);
        if *turn == last {
            out.prompt_len = out.ids.len();
        }
        let ids = tokenizer.encode(&text[start..bound])?;
        let closing = closing_of(messages, *turn, &text[start..bound], template)?;
        // What is said may hold special tokens itself; the one that closes the turn comes after.
        let said = tokenizer.encode(&text[start..bound - closing])?;
        let is_special = |id: &u32| tokenizer.is_special(*id);
        let inside = said.iter().filter(|id| is_special(id)).count();
        let mut special = (0..ids.len()).filter(|at| is_special(&ids[*at]));
        let n = special.nth(inside).map_or(ids.len(), |at| at + 1);
        out.push(&ids[..n], true);
        if *turn != last {
            out.push(&ids[n..], false);
        }
        done = bound;
    }
    Ok(out)
}

impl Tokenized {
    fn push(&mut self, ids: &[u32], trainable: bool) {
        self.ids.extend_from_slice(ids);
        self.trainable.resize(self.ids.len(), trainable);
    }
}

/// Where the turn `turn`, which begins at byte `start`, ends at the latest: where the conversation up
/// to it ends, or else where the assistant's next turn `next` begins.
fn end_of(
    messages: &[Value],
    turn: usize,
    next: usize,
    text: &str,
    start: usize,
    template: &ChatTemplate,
) -> Result<usize, DataError> {
    let so_far = template.render(&messages[..=turn], false)?;
    if text.starts_with(&so_far) {
        return Ok(so_far.len().max(start));
    }
    start_of(messages, next, text, start, template)
}

/// How many bytes at the end of `rendered`, the turn `turn` as it stands in the conversation, the
/// template wrote after the message's content: what stays when the content is another.
fn closing_of(
    messages: &[Value],
    turn: usize,
    rendered: &str,
    template: &ChatTemplate,
) -> Result<usize, DataError> {
    // A letter that no text ends with.
    const OTHER: &str = "\u{e000}";
    let mut messages = messages.to_vec();
    messages[turn]["content"] = OTHER.into();
    let other = template.render(&messages, false)?;
    // Of a turn in the middle, what comes after it is not the turn's.
    let Some(at) = other.rfind(OTHER) else {
        return Ok(0);
    };
    let after = &other[at + OTHER.len()..];
    // Where the rendered turn ends inside `after`, its closing is a suffix of the one and a prefix
    // of the other.
    let longest = after.len().min(rendered.len());
    let fits = |n: &usize| after.is_char_boundary(*n) && rendered.ends_with(&after[..*n]);
    Ok((0..=longest).rev().find(fits).unwrap_or(0))
}

/// Where, in the rendered conversation `text`, the turn `turn` begins; not before byte `from`.
fn start_of(
    messages: &[Value],
    turn: usize,
    text: &str,
    from: usize,
    template: &ChatTemplate,
) -> Result<usize, DataError> {
    let prompt = template.render(&messages[..turn], true)?;
    if text.starts_with(&prompt) {
        return Ok(prompt.len().max(from));
    }
    // The template renders earlier turns differently once later ones are there (a reasoning block
    // that is cut out, a date): what begins this turn is still the end of the prompt.
    let plain = template.render(&messages[..turn], false)?;
    if text.starts_with(&plain) {
        // The generation prompt writes more than the conversation does, such as an opened reasoning
        // block: the turn begins where the two part.
        let pairs = prompt.char_indices().zip(text.chars());
        let parted = pairs.into_iter().find(|((_, a), b)| a != b);
        return Ok(parted.map_or(text.len(), |((at, _), _)| at).max(from));
    }
    let opening = prompt.strip_prefix(plain.as_str()).unwrap_or("");
    let content = messages[turn]["content"].as_str().unwrap_or("").trim();
    // Only what a template can have left of the content is looked for.
    let answer = content.rsplit("</think>").next().unwrap_or(content).trim();
    let found = match opening {
        "" => text[from..].find(answer).map(|at| from + at),
        _ => text[from..].match_indices(opening).find_map(|(at, _)| {
            let start = from + at + opening.len();
            text[start..].contains(answer).then_some(start)
        }),
    };
    found.ok_or_else(|| {
        template.refuse(format!(
            "message {turn} (assistant) is not to be found in the rendered conversation; write a \
             template that keeps it, or tokenise the rows yourself (input_ids, prompt_length)"
        ))
    })
}
