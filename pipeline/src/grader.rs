//! Finding an answer in a text, and telling whether it is the gold one.
//!
//! An answer that cannot be found is *unparsed*, which is counted apart from a wrong one: a model
//! that forgot how to end its answer has another illness than one that reasons badly.

use std::ops::Range;

use regex::Regex;
use t3s_core::plan::{Compare, GraderPlan};

use crate::number;

/// Why a grader could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraderError {
    /// `grader.extract` is neither a known rule nor a regular expression.
    #[error(
        "grader.extract: {pattern:?} is no regular expression ({source}); write boxed, hash, or a \
         regular expression whose first group is the answer"
    )]
    Pattern {
        /// What the plan says.
        pattern: String,
        /// What is wrong with it.
        source: Box<regex::Error>,
    },
    /// The regular expression has no group.
    #[error(
        "grader.extract: {pattern:?} has no group; put the answer's part in parentheses, or write \
         boxed or hash"
    )]
    NoGroup {
        /// What the plan says.
        pattern: String,
    },
}

/// The verdict on one generated answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The gold answer.
    Right,
    /// Another answer.
    Wrong,
    /// No answer was found in the text.
    Unparsed,
}

/// How an answer is found in a text and compared with the gold one.
#[derive(Debug, Clone)]
pub struct Grader {
    extract: Extract,
    compare: Compare,
}

#[derive(Debug, Clone)]
enum Extract {
    Boxed,
    Hash,
    Pattern(Box<Regex>),
}

impl Grader {
    /// The grader that `plan` describes.
    ///
    /// # Errors
    /// When `extract` is no rule and no regular expression with a group.
    pub fn new(plan: &GraderPlan) -> Result<Self, GraderError> {
        let extract = match plan.extract.as_str() {
            "boxed" => Extract::Boxed,
            "hash" => Extract::Hash,
            pattern => {
                let regex = Regex::new(pattern).map_err(|source| GraderError::Pattern {
                    pattern: pattern.to_owned(),
                    source: Box::new(source),
                })?;
                if regex.captures_len() < 2 {
                    return Err(GraderError::NoGroup {
                        pattern: pattern.to_owned(),
                    });
                }
                Extract::Pattern(Box::new(regex))
            }
        };
        Ok(Self {
            extract,
            compare: plan.compare,
        })
    }

    /// Where the answer stands in `text`, in bytes, spaces at its ends left out. Never empty.
    pub fn span(&self, text: &str) -> Option<Range<usize>> {
        let found = match &self.extract {
            Extract::Boxed => last_boxed(text),
            Extract::Hash => after_last_hash(text),
            Extract::Pattern(regex) => regex
                .captures_iter(text)
                .filter_map(|captures| captures.get(1))
                .last()
                .map(|group| group.range()),
        }?;
        let answer = &text[found.clone()];
        let start = found.start + (answer.len() - answer.trim_start().len());
        let end = start + answer.trim().len();
        (start < end).then_some(start..end)
    }

    /// The answer in `text`, if there is one.
    pub fn extract<'t>(&self, text: &'t str) -> Option<&'t str> {
        self.span(text).map(|span| &text[span])
    }

    /// Whether two answers are equal under the plan's comparison. Symmetric.
    pub fn equal(&self, a: &str, b: &str) -> bool {
        match self.compare {
            Compare::Exact => a.trim() == b.trim(),
            Compare::Numeric => number::equal(a, b, number::Fractions::No),
            Compare::Fraction => number::equal(a, b, number::Fractions::Yes),
        }
    }

    /// The verdict on the generated `text`.
    pub fn grade(&self, text: &str, gold: &str) -> Verdict {
        match self.extract(text) {
            None => Verdict::Unparsed,
            Some(answer) if self.equal(answer, gold) => Verdict::Right,
            Some(_) => Verdict::Wrong,
        }
    }
}

/// The content of the last complete `\boxed{...}`. Braces nest; `\{` and `\}` are text.
fn last_boxed(text: &str) -> Option<Range<usize>> {
    const OPENING: &str = "\\boxed";
    let mut end = text.len();
    // From the back, since an answer that was cut off inside its last box has said one before.
    while let Some(at) = text[..end].rfind(OPENING) {
        if let Some(content) = braced(text, at + OPENING.len()) {
            return Some(content);
        }
        end = at;
    }
    None
}

/// The content of the braces that open at `from`, spaces before them aside.
fn braced(text: &str, from: usize) -> Option<Range<usize>> {
    let rest = &text[from..];
    let open = from + (rest.len() - rest.trim_start().len());
    if text.as_bytes().get(open) != Some(&b'{') {
        return None;
    }
    let (mut depth, mut escaped) = (0_usize, false);
    for (offset, byte) in text[open..].bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(open + 1..open + offset);
                }
            }
            _ => {}
        }
    }
    None
}

/// The rest of the line after the last `####`.
fn after_last_hash(text: &str) -> Option<Range<usize>> {
    let start = text.rfind("####")? + 4;
    let length = text[start..].find('\n').unwrap_or(text.len() - start);
    Some(start..start + length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grader(extract: &str, compare: Compare) -> Grader {
        Grader::new(&GraderPlan {
            extract: extract.into(),
            compare,
        })
        .unwrap()
    }

    #[test]
    fn the_last_complete_box_counts() {
        let boxed = grader("boxed", Compare::Exact);
        for (text, answer) in [
            (r"so \boxed{7}.", Some("7")),
            (r"\boxed{1} no, \boxed{2}", Some("2")),
            (r"\boxed{\frac{1}{2}}", Some(r"\frac{1}{2}")),
            (r"\boxed{ \{1, 2\} }", Some(r"\{1, 2\}")),
            (r"\boxed{\left\{ x }", Some(r"\left\{ x")),
            (r"\boxed {3}", Some("3")),
            (r"\boxed{\boxed{4}}", Some("4")),
            (r"\boxed{5} then \boxed{6", Some("5")),
            (r"\boxed{}", None),
            (r"\boxed{ }", None),
            (r"\boxed", None),
            ("42", None),
        ] {
            assert_eq!(boxed.extract(text), answer, "{text}");
        }
    }

    #[test]
    fn the_line_after_the_last_hashes_counts() {
        let hash = grader("hash", Compare::Exact);
        assert_eq!(hash.extract("a\n#### 1,000\n"), Some("1,000"));
        assert_eq!(hash.extract("#### 1\n#### 2 \nmore"), Some("2"));
        assert_eq!(hash.extract("####\nx"), None);
        assert_eq!(hash.extract("### 3"), None);
    }

    #[test]
    fn the_last_match_of_a_pattern_counts() {
        let pattern = grader(r"A: (.*)", Compare::Exact);
        assert_eq!(pattern.extract("A: 1\nA: 18"), Some("18"));
        assert_eq!(pattern.extract("18"), None);
        assert!(matches!(
            Grader::new(&GraderPlan {
                extract: "A: .*".into(),
                compare: Compare::Exact
            }),
            Err(GraderError::NoGroup { .. })
        ));
        let error = Grader::new(&GraderPlan {
            extract: "box(ed".into(),
            compare: Compare::Exact,
        })
        .unwrap_err();
        assert!(error.to_string().contains("grader.extract"), "{error}");
    }

    #[test]
    fn a_parse_failure_is_not_a_wrong_answer() {
        let boxed = grader("boxed", Compare::Numeric);
        assert_eq!(boxed.grade(r"\boxed{1,000.}", "1000"), Verdict::Right);
        assert_eq!(boxed.grade(r"\boxed{999}", "1000"), Verdict::Wrong);
        assert_eq!(boxed.grade("1000", "1000"), Verdict::Unparsed);
    }

    proptest! {
        #[test]
        fn a_balanced_answer_comes_back_whole(answer in r"[a-z0-9]{1,4}(\{[a-z0-9]{0,3}(\{[0-9]\})?\}){0,3}", before in r"[^\\]{0,20}") {
            let boxed = grader("boxed", Compare::Exact);
            let text = format!("{before}\\boxed{{{answer}}} done }}");
            prop_assert_eq!(boxed.extract(&text), Some(answer.as_str()));
        }

        #[test]
        fn no_text_makes_it_panic(text in r"(\\boxed|\{|\}|\\|#|[a-zé ]){0,30}", gold in "\\PC{0,12}") {
            for rule in ["boxed", "hash", "(.*)"] {
                for compare in [Compare::Exact, Compare::Numeric, Compare::Fraction] {
                    let grader = grader(rule, compare);
                    let _ = grader.grade(&text, &gold);
                    prop_assert_eq!(grader.equal(&text, &gold), grader.equal(&gold, &text));
                    prop_assert!(grader.equal(&gold, &gold));
                }
            }
        }
    }
}
