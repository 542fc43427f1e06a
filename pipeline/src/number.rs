//! Reading a number out of an answer as people and models write it.

use std::sync::LazyLock;

use regex::Regex;

/// Whether `1/2` and `\frac{1}{2}` are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fractions {
    /// No: they are texts.
    No,
    /// Yes.
    Yes,
}

/// Relative difference up to which two numbers are one. Two integers have to be equal.
const TOLERANCE: f64 = 1e-6;

/// An answer that is a number, with what stands behind it.
#[derive(Debug, Clone, PartialEq)]
struct Quantity {
    value: f64,
    /// The digits, where the number was written as an integer: f64 would merge neighbours.
    integer: Option<String>,
    /// Lower-case words after the number, e.g. `dollars`; empty: none.
    unit: String,
}

/// Whether two answers are the same number, or, where one of them is no number, the same text.
///
/// Thousands separators, signs of currency and percent, dollar signs of TeX, a trailing full stop
/// and units (words of two letters or more) are put aside; two answers with different units differ.
pub fn equal(a: &str, b: &str, fractions: Fractions) -> bool {
    let (a, b) = (plain(a), plain(b));
    match (quantity(&a, fractions), quantity(&b, fractions)) {
        (Some(a), Some(b)) => {
            let units = a.unit.is_empty() || b.unit.is_empty() || a.unit == b.unit;
            let values = match (&a.integer, &b.integer) {
                (Some(a), Some(b)) => a == b,
                _ => (a.value - b.value).abs() <= TOLERANCE * a.value.abs().max(b.value.abs()),
            };
            units && values
        }
        (None, None) => squeezed(&a) == squeezed(&b),
        _ => false,
    }
}

static SIZES: LazyLock<Regex> = LazyLock::new(|| pattern(r"\\(left|right)\b\s*"));
static TEXT: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\\(?:text|mathrm|textbf|mbox|mathbf|operatorname)\s*\{([^{}]*)\}"));
static SPACING: LazyLock<Regex> = LazyLock::new(|| pattern(r"\\[,;:! ]|~|\{,\}"));
static GROUPED: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^([+-]?\d{1,3}(?:,\d{3})+)(\D.*|\.\d.*|)$"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)^ ([+-]?) \s* ( \d+ (?:\.\d*)? | \.\d+ ) (?: [eE] ([+-]?\d{1,4}) )?
          (?: \s* (?: \\times | \\cdot | \* | x | × ) \s* 10 \s* \^ \s* \{? \s* ([+-]?\d{1,4}) \s* \}? )? (.*) $",
    )
});
static FRACTION: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)^ ([+-]?) \s* (?: (\d+) \s* [\ ] \s* )? (\d+ (?:\.\d+)?) \s* / \s* ([+-]?\d+ (?:\.\d+)?) (.*) $",
    )
});
static TEX_FRACTION: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)^ ([+-]?) \s* (\d+)? \s* \\[dtc]?frac \s*
          (?: \{ \s* ([+-]?[\d.]+) \s* \} | (\d) ) \s* (?: \{ \s* ([+-]?[\d.]+) \s* \} | (\d) ) (.*) $",
    )
});
static UNIT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^(?:\^?\{?\s*(?:\\circ|°)\s*\}?|\s+\p{L}{2,}(?:[ /-]\p{L}{2,}){0,3})$")
});

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("own patterns are valid")
}

/// The answer without TeX's dressing and without marks that say nothing about its value.
fn plain(answer: &str) -> String {
    let mut text = answer.trim();
    loop {
        let stripped = text.trim_matches('$').trim();
        let stripped = ["\\(", "\\["]
            .iter()
            .fold(stripped, |t, m| t.trim_start_matches(m));
        let stripped = ["\\)", "\\]"]
            .iter()
            .fold(stripped, |t, m| t.trim_end_matches(m));
        if stripped == text {
            break;
        }
        text = stripped;
    }
    let text = text.replace('\u{2212}', "-");
    let text = SIZES.replace_all(&text, "");
    let text = TEXT.replace_all(&text, " $1");
    let text = SPACING.replace_all(
        &text,
        |found: &regex::Captures<'_>| {
            if &found[0] == "{,}" { "," } else { " " }
        },
    );
    let text = text.trim();
    // Not "...", and not the point of "5." alone when nothing else is there.
    match text.strip_suffix('.') {
        Some(rest) if !rest.is_empty() && !rest.ends_with('.') => rest.trim_end().to_owned(),
        _ => text.to_owned(),
    }
}

/// `plain` text with the spaces gone that part nothing: `(1, 2)` is `(1,2)`, `1 2` is not `12`.
fn squeezed(text: &str) -> String {
    let text = text
        .replace("\\dfrac", "\\frac")
        .replace("\\tfrac", "\\frac");
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut waiting = false;
    for c in characters {
        if c.is_whitespace() {
            waiting = true;
            continue;
        }
        let parts = |c: char| c.is_alphanumeric();
        if waiting && parts(c) && out.chars().next_back().is_some_and(parts) {
            out.push(' ');
        }
        waiting = false;
        out.push(c);
    }
    out
}

fn quantity(plain: &str, fractions: Fractions) -> Option<Quantity> {
    const CURRENCY: [char; 4] = ['$', '€', '£', '¥'];
    // A sign may stand before or after the currency: -$5, $-5.
    let (sign, rest) = match plain.strip_prefix('-') {
        Some(rest) => ("-", rest.trim_start()),
        None => ("", plain),
    };
    let rest = rest
        .strip_prefix('\\')
        .filter(|r| r.starts_with('$'))
        .unwrap_or(rest);
    let rest = rest.trim_start_matches(CURRENCY).trim();
    let rest = rest.trim_end_matches(CURRENCY).trim_end();
    let rest = match rest.strip_suffix('%') {
        Some(number) => number.strip_suffix('\\').unwrap_or(number).trim_end(),
        None => rest,
    };
    if !sign.is_empty() && rest.starts_with(['-', '+']) {
        return None;
    }
    let mut text = format!("{sign}{rest}");
    if let Some(found) = GROUPED.captures(&text) {
        text = format!("{}{}", found[1].replace(',', ""), &found[2]);
    }
    if fractions == Fractions::Yes
        && let Some(found) = fraction(&text)
    {
        return Some(found);
    }
    decimal(&text)
}

fn decimal(text: &str) -> Option<Quantity> {
    let found = NUMBER.captures(text)?;
    let unit = unit(&found[5])?;
    let exponent = |group| {
        found
            .get(group)
            .map_or(Ok(0), |e| e.as_str().parse::<i32>())
    };
    let exponents = exponent(3).ok()? + exponent(4).ok()?;
    // Parsed whole, since multiplying by a power of ten would round a second time.
    let value: f64 = format!("{}{}e{exponents}", &found[1], &found[2])
        .parse()
        .ok()?;
    let written = found.get(3).is_none() && found.get(4).is_none() && !found[2].contains('.');
    let integer = written.then(|| {
        let digits = found[2].trim_start_matches('0');
        let sign = if &found[1] == "-" && !digits.is_empty() {
            "-"
        } else {
            ""
        };
        format!("{sign}{digits}")
    });
    value.is_finite().then_some(Quantity {
        value,
        integer,
        unit,
    })
}

fn fraction(text: &str) -> Option<Quantity> {
    let group = |found: &regex::Captures<'_>, n: usize| -> Option<String> {
        found.get(n).map(|g| g.as_str().to_owned())
    };
    let (sign, whole, above, below, rest) = if let Some(f) = TEX_FRACTION.captures(text) {
        let above = group(&f, 3).or_else(|| group(&f, 4))?;
        let below = group(&f, 5).or_else(|| group(&f, 6))?;
        (f[1].to_owned(), group(&f, 2), above, below, f[7].to_owned())
    } else {
        let f = FRACTION.captures(text)?;
        (
            f[1].to_owned(),
            group(&f, 2),
            f[3].to_owned(),
            f[4].to_owned(),
            f[5].to_owned(),
        )
    };
    let unit = unit(&rest)?;
    let (above, below): (f64, f64) = (above.parse().ok()?, below.parse().ok()?);
    let whole: f64 = whole.map_or(Ok(0.0), |w| w.parse()).ok()?;
    let magnitude = whole + above / below;
    let value = if sign == "-" { -magnitude } else { magnitude };
    value.is_finite().then_some(Quantity {
        value,
        integer: None,
        unit,
    })
}

/// The unit that `rest` is, if nothing else stands there.
fn unit(rest: &str) -> Option<String> {
    let words = rest.trim().trim_end_matches('.');
    if words.is_empty() {
        return Some(String::new());
    }
    if words == "pi" || !UNIT.is_match(rest.trim_end().trim_end_matches('.')) {
        return None;
    }
    // A degree says no more about the value than a percent sign does.
    let degree = words.contains("circ") || words.contains('°');
    Some(if degree {
        String::new()
    } else {
        words.to_lowercase()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numeric(a: &str, b: &str) -> bool {
        equal(a, b, Fractions::No)
    }

    fn fractional(a: &str, b: &str) -> bool {
        equal(a, b, Fractions::Yes)
    }

    #[test]
    fn marks_that_say_nothing_are_put_aside() {
        for (a, b) in [
            ("1,000", "1000"),
            ("1{,}000", "1000"),
            (r"1\,000", "1 000"),
            ("$18", "18"),
            (r"\$18", "18"),
            ("$18.00", "18"),
            ("-$5", "-5"),
            ("$-5", "-5"),
            ("50%", "50"),
            (r"50\%", "50"),
            ("18.", "18"),
            ("18 dollars", "18"),
            ("18 dollars.", "18"),
            (r"18\text{ dollars}", "18"),
            (r"\text{18}", "18"),
            (r"90^\circ", "90"),
            (r"$90^{\circ}$", "90"),
            ("+7", "7"),
            ("\u{2212}7", "-7"),
            ("007", "7"),
            ("-0", "0"),
            (".5", "0.5"),
            ("4.5e33", r"4.5 \times 10^{33}"),
            ("27.0", "27"),
            ("1,234,567.5", "1234567.5"),
            ("12 miles per hour", "12"),
        ] {
            assert!(numeric(a, b) && numeric(b, a), "{a} = {b}");
        }
    }

    #[test]
    fn what_differs_stays_different() {
        for (a, b) in [
            ("18", "19"),
            ("18", "-18"),
            ("1,2", "12"),
            ("1,23", "123"),
            ("3x", "3"),
            ("3 pi", "3"),
            (r"3\pi", "3"),
            (r"3\sqrt{2}", "3"),
            ("2 + 3", "2"),
            ("5 or 6", "5"),
            ("5 cm", "5 km"),
            ("1/2", "0.5"),
            ("1000000", "1000001"),
            ("nan", "0"),
            ("inf", "1e999"),
            ("", "0"),
            ("1 2", "12"),
            ("2^{10}", "2"),
        ] {
            assert!(!numeric(a, b) && !numeric(b, a), "{a} != {b}");
        }
    }

    #[test]
    fn fractions_are_numbers_where_the_plan_says_so() {
        for (a, b) in [
            ("1/2", "0.5"),
            (r"\frac{1}{2}", "1/2"),
            (r"\dfrac{1}{2}", ".5"),
            (r"\frac12", "0.5"),
            (r"-\frac{14}{3}", "-14/3"),
            (r"\frac{-1}{2}", "-0.5"),
            ("1 1/2", "1.5"),
            (r"1\frac{1}{2}", "1.5"),
            (r"-1\frac{1}{2}", "-1.5"),
            ("$3/4$", "75/100"),
            ("1/2 hour", "0.5"),
            (r"\$\frac{3}{2}", "1.5"),
        ] {
            assert!(fractional(a, b) && fractional(b, a), "{a} = {b}");
        }
        for (a, b) in [
            ("1/0", "0"),
            ("1/2", "1/3"),
            ("1 1/2", "11/2"),
            (r"\frac{\pi}{2}", "1/2"),
        ] {
            assert!(!fractional(a, b) && !fractional(b, a), "{a} != {b}");
        }
    }

    #[test]
    fn texts_are_equal_up_to_spaces_that_part_nothing() {
        assert!(numeric("(1, 2)", "(1,2)"));
        assert!(numeric(
            r"\left( 3, \frac{\pi}{2} \right)",
            r"(3,\dfrac{\pi}{2})"
        ));
        assert!(numeric(r"\text{Evelyn}", "Evelyn"));
        assert!(!numeric("a b", "ab"));
    }

    proptest! {
        #[test]
        fn an_integer_equals_itself_however_it_is_dressed(n in -400_000_i64..400_000, dress in 0..6) {
            let digits = n.unsigned_abs().to_string();
            let mut grouped = String::new();
            for (i, c) in digits.chars().enumerate() {
                if i > 0 && (digits.len() - i).is_multiple_of(3) {
                    grouped.push(',');
                }
                grouped.push(c);
            }
            let sign = if n < 0 { "-" } else { "" };
            let dressed = match dress {
                0 => format!("{sign}{grouped}"),
                1 => format!("{sign}${grouped}.00"),
                2 => format!("${sign}{digits}$"),
                3 => format!("{sign}{digits} apples"),
                4 => format!("{sign}{grouped}%"),
                _ => format!(" {sign}{digits}. "),
            };
            prop_assert!(numeric(&dressed, &n.to_string()), "{}", dressed);
            prop_assert!(!numeric(&dressed, &(n + 1).to_string()), "{}", dressed);
        }

        #[test]
        fn a_fraction_equals_its_decimal(a in -500_i32..500, b in 1_i32..500) {
            let decimal = format!("{:.12}", f64::from(a) / f64::from(b));
            for text in [format!("{a}/{b}"), format!(r"\frac{{{a}}}{{{b}}}"), format!(r"$\dfrac{{{a}}}{{{b}}}$")] {
                prop_assert!(fractional(&text, &decimal), "{} {}", text, decimal);
                let next = format!("{}/{b}", a + 1);
                prop_assert!(!fractional(&text, &next));
            }
        }
    }
}
