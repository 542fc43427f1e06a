//! What kind of token it is, by its text alone: enough to see who is dropped.

/// A kind of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Has a digit.
    Number,
    /// Signs of formulas.
    Operator,
    /// Words that lead from one thought to the next: `CONNECTIVES`.
    Connective,
    /// Has a letter, and is nothing of the above.
    Word,
    /// Marks between words.
    Punctuation,
    /// Spaces and line breaks only.
    Space,
    /// Special tokens, such as the end of a turn.
    Special,
    /// Bytes of a character, symbols, emoji.
    Other,
}

impl Class {
    /// Every kind, in the order of a table.
    pub const ALL: [Self; 8] = [
        Self::Number,
        Self::Operator,
        Self::Connective,
        Self::Word,
        Self::Punctuation,
        Self::Space,
        Self::Special,
        Self::Other,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Number => "numbers",
            Self::Operator => "signs of formulas",
            Self::Connective => "connectives",
            Self::Word => "words and their pieces",
            Self::Punctuation => "punctuation",
            Self::Space => "spaces and line breaks",
            Self::Special => "special tokens",
            Self::Other => "other",
        }
    }

    /// The kind of a token that reads `text`.
    pub fn of(text: &str, special: bool) -> Self {
        if special {
            return Self::Special;
        }
        let text = text.trim();
        let any = |test: fn(char) -> bool| text.chars().any(test);
        if text.is_empty() {
            Self::Space
        } else if any(char::is_numeric) {
            Self::Number
        } else if any(char::is_alphabetic) {
            let lower = text.to_lowercase();
            match CONNECTIVES.binary_search(&lower.as_str()) {
                Ok(_) => Self::Connective,
                Err(_) => Self::Word,
            }
        } else if text.chars().all(|c| OPERATORS.contains(c)) {
            Self::Operator
        } else if text
            .chars()
            .all(|c| c.is_ascii_punctuation() || PUNCTUATION.contains(c))
        {
            Self::Punctuation
        } else {
            Self::Other
        }
    }
}

const OPERATORS: &str = "+-*/=<>^%|~_{}\\$#&×÷±≤≥≈≠√∑∏∫∞→⇒−·";
const PUNCTUATION: &str = "–—…‘’“”«»¿¡、。，！？：；（）";

/// English words with which a thought begins or goes on; ascending.
pub const CONNECTIVES: &[&str] = &[
    "actually",
    "after",
    "again",
    "also",
    "alternatively",
    "although",
    "and",
    "anyway",
    "because",
    "before",
    "but",
    "consequently",
    "finally",
    "first",
    "for",
    "furthermore",
    "hence",
    "hmm",
    "however",
    "if",
    "indeed",
    "instead",
    "let",
    "maybe",
    "meanwhile",
    "moreover",
    "next",
    "now",
    "ok",
    "okay",
    "or",
    "perhaps",
    "second",
    "similarly",
    "since",
    "so",
    "still",
    "that",
    "then",
    "therefore",
    "third",
    "though",
    "thus",
    "to",
    "wait",
    "well",
    "when",
    "where",
    "whereas",
    "which",
    "while",
    "yes",
    "yet",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_what_they_look_like() {
        assert!(CONNECTIVES.is_sorted());
        for (text, class) in [
            (" 42", Class::Number),
            ("x2", Class::Number),
            (" =", Class::Operator),
            ("\\", Class::Operator),
            (" So", Class::Connective),
            ("Wait", Class::Connective),
            (" apples", Class::Word),
            ("שלום", Class::Word),
            (",", Class::Punctuation),
            ("。", Class::Punctuation),
            ("\n\n", Class::Space),
            ("", Class::Space),
            ("\u{FFFD}", Class::Other),
            ("👩", Class::Other),
        ] {
            assert_eq!(Class::of(text, false), class, "{text:?}");
        }
        assert_eq!(Class::of("<|im_end|>", true), Class::Special);
    }
}
