//! Jinja chat templates, as transformers renders them.

use std::path::{Path, PathBuf};

use minijinja::{
    Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use t3s_core::Fingerprint;

use crate::error::DataError;

/// A compiled template with the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    fingerprint: Fingerprint,
    tokens: serde_json::Map<String, serde_json::Value>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles `text`, read from `path`; `tokens` are variables such as `bos_token`.
    ///
    /// # Errors
    /// When it is no template; names the line.
    pub fn new(
        path: &Path,
        text: &str,
        tokens: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        // What transformers sets.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the usual delimiters");
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        // `{% generation %}` only marks the assistant's text, which is found without it.
        let text = without_generation_tags(text);
        environment
            .add_template_owned(NAME, text.clone())
            .map_err(|e| DataError::Template {
                path: path.to_owned(),
                message: describe(&e),
            })?;
        Ok(Self {
            environment,
            path: path.to_owned(),
            fingerprint: Fingerprint::of_bytes(text.as_bytes()),
            tokens,
        })
    }

    /// Renders `messages`; with `add_generation_prompt` up to where the assistant begins to write.
    ///
    /// # Errors
    /// When the template refuses the conversation; the message is its own.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, DataError> {
        let mut context: std::collections::BTreeMap<&str, Value> = self
            .tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(Serde(token))))
            .collect();
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(|e| DataError::Template {
                path: self.path.clone(),
                message: describe(&e),
            })
    }

    /// A refusal in the template's name.
    pub(crate) fn refuse(&self, message: String) -> DataError {
        DataError::Template {
            path: self.path.clone(),
            message,
        }
    }

    /// Of the template's text.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }
}

fn describe(error: &Error) -> String {
    let at = error
        .line()
        .map(|line| format!("line {line}: "))
        .unwrap_or_default();
    format!("{at}{error}")
}

fn without_generation_tags(text: &str) -> String {
    let tag = regex::Regex::new(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}").expect("a pattern");
    // An empty comment keeps the tag's trimming of spaces.
    tag.replace_all(text, "{#$1 $2#}").into_owned()
}

/// The template's way to refuse a conversation.
fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The current date. Templates with a date in them make every day another data set, so it is a fixed
/// one, which the data's fingerprint can rely on.
fn strftime_now(format: &str) -> String {
    const FIXED: (&str, &str, &str, &str, &str) = ("2025", "01", "01", "Jan", "January");
    let (year, month, day, short, long) = FIXED;
    [
        ("%Y", year),
        ("%m", month),
        ("%d", day),
        ("%b", short),
        ("%B", long),
        ("%y", "25"),
        ("%H", "00"),
        ("%M", "00"),
        ("%S", "00"),
        ("%A", "Wednesday"),
        ("%a", "Wed"),
        ("%j", "001"),
    ]
    .iter()
    .fold(format.to_owned(), |text, (code, value)| {
        text.replace(code, value)
    })
}

/// `json.dumps` as transformers calls it: `ensure_ascii = False`, separators with a space, `indent`
/// where asked for.
fn to_json(value: Serde<serde_json::Value>, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted and without effect: the defaults are what templates ask for.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut text = Vec::new();
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut writer = serde_json::Serializer::with_formatter(&mut text, formatter);
            serde::Serialize::serialize(&value.0, &mut writer).map_err(failed)?;
        }
        None => {
            let mut writer = serde_json::Serializer::with_formatter(&mut text, Spaced);
            serde::Serialize::serialize(&value.0, &mut writer).map_err(failed)?;
        }
    }
    let text = String::from_utf8(text).expect("JSON is UTF-8");
    Ok(Value::from_safe_string(text))
}

/// Python's default separators: `", "` and `": "`.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
