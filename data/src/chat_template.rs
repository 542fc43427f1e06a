//! Jinja chat templates, as transformers renders them.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

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

/// The first of January 2025. A template that writes today's date would make another data set of the
/// same file every day, and no stored stage or token store would fit the next.
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

/// `json.dumps` as transformers calls it: `ensure_ascii = False`, Python's separators, and `indent`,
/// `separators` and `sort_keys` where asked for.
fn to_json(value: Serde<serde_json::Value>, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    // Accepted and without effect: transformers' own default is what every template asks for.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let value = match sort_keys {
        Some(true) => sorted(value.0),
        _ => value.0,
    };
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut text = Vec::new();
    if let Some(width) = indent {
        let spaces = " ".repeat(width);
        let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
        let mut writer = serde_json::Serializer::with_formatter(&mut text, formatter);
        serde::Serialize::serialize(&value, &mut writer).map_err(failed)?;
    } else {
        let formatter = match separators.as_deref() {
            None => Separated {
                item: ", ",
                key: ": ",
            },
            Some([item, key]) => Separated { item, key },
            Some(_) => {
                let message = "tojson: separators are two texts, e.g. (',', ':')";
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        let mut writer = serde_json::Serializer::with_formatter(&mut text, formatter);
        serde::Serialize::serialize(&value, &mut writer).map_err(failed)?;
    }
    let text = String::from_utf8(text).expect("JSON is UTF-8");
    Ok(Value::from_safe_string(text))
}

/// `value` with the keys of every object in order.
fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let pairs = map.into_iter().map(|(key, value)| (key, sorted(value)));
            let ordered: std::collections::BTreeMap<_, _> = pairs.collect();
            serde_json::Value::Object(ordered.into_iter().collect())
        }
        serde_json::Value::Array(list) => list.into_iter().map(sorted).collect(),
        other => other,
    }
}

/// Writes JSON on one line with these separators.
struct Separated<'s> {
    item: &'s str,
    key: &'s str,
}

impl serde_json::ser::Formatter for Separated<'_> {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        let separator = if first { "" } else { self.item };
        writer.write_all(separator.as_bytes())
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        let separator = if first { "" } else { self.item };
        writer.write_all(separator.as_bytes())
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(text: &str) -> String {
        let table = json!({ "z": 1, "a": ["é", "<"] });
        let message = json!({ "role": "user", "content": "x", "b": table });
        let template =
            ChatTemplate::new(Path::new("t.jinja"), text, serde_json::Map::new()).unwrap();
        template.render(&[message], false).unwrap()
    }

    /// What Python's `json.dumps(x, ensure_ascii=False, ...)` prints.
    #[test]
    fn tojson_is_pythons() {
        let of = |options: &str| render(&format!("{{{{ messages[0].b | tojson{options} }}}}"));
        assert_eq!(of(""), r#"{"z": 1, "a": ["é", "<"]}"#);
        assert_eq!(of("(sort_keys=true)"), r#"{"a": ["é", "<"], "z": 1}"#);
        assert_eq!(of("(separators=(',', ':'))"), r#"{"z":1,"a":["é","<"]}"#);
        assert_eq!(
            of("(indent=2)"),
            "{\n  \"z\": 1,\n  \"a\": [\n    \"é\",\n    \"<\"\n  ]\n}"
        );
    }

    #[test]
    fn dates_do_not_depend_on_the_day() {
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}"), "01 Jan 2025");
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_does() {
        let text =
            "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}";
        assert_eq!(render(text), "user\n");
    }

    #[test]
    fn a_broken_template_names_its_line() {
        let path = Path::new("t.jinja");
        let broken = ChatTemplate::new(path, "a\n{% if %}", serde_json::Map::new());
        let message = broken.unwrap_err().to_string();
        assert!(
            message.starts_with("t.jinja: chat template: line 2: "),
            "{message}"
        );
    }
}
