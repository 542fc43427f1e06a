//! Tokens as lines of a terminal.

use std::io::{self, Write};

use anstyle::{Ansi256Color, AnsiColor, Color, Effects, Style};
use t3s_report::{Column, Tokens, Trace};
use unicode_width::UnicodeWidthStr;

/// What is drawn on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether it has colours.
    pub colour: bool,
}

/// From pale to strong, of the 256 colours that terminals agree on. All are dark enough for white
/// letters or light enough for black ones, see [`style`].
const ORANGE: [u8; 5] = [223, 216, 209, 173, 130];
const BLUE: [u8; 5] = [189, 153, 111, 68, 25];

/// Without colours a level is a digit behind the token.
const DIGITS: [char; 10] = ['₀', '₁', '₂', '₃', '₄', '₅', '₆', '₇', '₈', '₉'];

/// How far `value` is on the scale of `column`, from -1 (orange) to 1 (blue), as the page has it.
fn place(column: &Column, value: f32) -> f32 {
    match column.name.as_str() {
        "weight" => value - 1.0,
        _ if column.scale.signed => -column.scale.place(value),
        _ => column.scale.place(value),
    }
}

/// 0 for nothing to be seen, else 1 to 5.
fn level(place: f32) -> usize {
    (place.abs() * 5.0).round().clamp(0.0, 5.0) as usize
}

fn style(place: f32) -> Style {
    let level = level(place);
    if level == 0 {
        return Style::new();
    }
    let colours = if place < 0.0 { ORANGE } else { BLUE };
    let letters = if level == 5 {
        AnsiColor::BrightWhite
    } else {
        AnsiColor::Black
    };
    Style::new()
        .bg_color(Some(Color::Ansi256(Ansi256Color(colours[level - 1]))))
        .fg_color(Some(Color::Ansi(letters)))
}

/// What a terminal can show of `piece`: nothing that moves its cursor or changes its direction.
fn shown(piece: &str) -> String {
    if piece.is_empty() {
        return "·".to_owned();
    }
    piece
        .chars()
        .map(|c| match c {
            '\n' => '↵',
            '\t' => '⇥',
            '\r' => '␍',
            c if c.is_control() || is_direction(c) => '\u{FFFD}',
            c => c,
        })
        .collect()
}

/// Marks that turn the order of what follows on the screen.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Draws `trace` coloured by `column`: what it answers, the tokens, the legend.
pub fn trace(
    out: &mut dyn Write,
    tokens: &Tokens,
    trace: &Trace,
    column: &Column,
    canvas: Canvas,
) -> io::Result<()> {
    let bold = |text: String| match canvas.colour {
        true => format!("{}{text}{}", Style::new().bold(), anstyle::Reset),
        false => text,
    };
    let kept = tokens.weights.as_ref().map(|weights| {
        let weights = &weights[trace.rows.clone()];
        let kept = weights.iter().filter(|weight| **weight > 0.0).count();
        format!(", {kept} of them kept")
    });
    let kept = kept.unwrap_or_default();
    let n = trace.pieces.len();
    writeln!(
        out,
        "{}",
        bold(format!("example {}: {n} tokens{kept}", trace.id))
    )?;
    if let Some(prompt) = tokens.prompt(trace.id) {
        for line in prompt.text.trim().lines() {
            for line in wrap(&shown(line), canvas.width - 2) {
                writeln!(out, "> {line}")?;
            }
        }
    }
    writeln!(out)?;
    let mut at = 0;
    for (index, row) in trace.rows.clone().enumerate() {
        let piece = &trace.pieces[index];
        if trace.gaps.contains(&index) {
            write!(out, "\n⋯\n")?;
            at = 0;
        }
        let value = column.values[row];
        let place = place(column, value);
        let dropped = tokens.weights.as_ref().is_some_and(|w| w[row] <= 0.0);
        let mut text = shown(piece);
        if !canvas.colour {
            text = plain(&text, column, value, place, dropped);
        }
        let width = text.width();
        if at > 0 && at + width > canvas.width {
            writeln!(out)?;
            at = 0;
        }
        if canvas.colour {
            let mut style = style(place);
            if dropped {
                style |= Effects::UNDERLINE;
            }
            write!(out, "{style}{text}{style:#}")?;
        } else {
            write!(out, "{text}")?;
        }
        at += width;
        if piece.ends_with('\n') {
            writeln!(out)?;
            at = 0;
        }
    }
    if at > 0 {
        writeln!(out)?;
    }
    writeln!(out)?;
    legend(out, tokens, column, canvas)
}

/// A token with its level behind it; one that is dropped stands in brackets.
fn plain(text: &str, column: &Column, value: f32, place: f32, dropped: bool) -> String {
    let text = match dropped {
        true => format!("[{text}]"),
        false => text.to_owned(),
    };
    if column.name == "weight" && (value == 0.0 || value == 1.0) {
        return text;
    }
    let level = (place.abs() * 9.0).round().clamp(0.0, 9.0) as usize;
    let sign = match column.scale.signed && level > 0 {
        // Orange is what rose.
        true if place < 0.0 => "⁺",
        true => "⁻",
        false => "",
    };
    format!("{text}{sign}{}", DIGITS[level])
}

fn legend(out: &mut dyn Write, tokens: &Tokens, column: &Column, canvas: Canvas) -> io::Result<()> {
    let (low, high) = (column.scale.low, column.scale.high);
    write!(out, "{}: {} ", column.label(), number(low))?;
    if canvas.colour {
        let steps = match (column.name.as_str(), column.scale.signed) {
            ("weight", _) => vec![-1.0, -0.8, -0.6, -0.4, -0.2, 0.0],
            (_, true) => (0..=10).map(|i| 1.0 - i as f32 / 5.0).collect(),
            (_, false) => (0..=5).map(|i| i as f32 / 5.0).collect(),
        };
        for step in steps {
            let style = style(step);
            write!(out, "{style}  {style:#}")?;
        }
    } else if column.scale.signed {
        write!(out, "⁻₉ to ⁺₉")?;
    } else if column.name != "weight" {
        write!(out, "₀ to ₉")?;
    } else {
        write!(out, "to")?;
    }
    write!(out, " {}", number(high))?;
    if tokens.weights.is_some() {
        let how = if canvas.colour {
            "underlined"
        } else {
            "in brackets"
        };
        write!(out, "; {how}: dropped")?;
    }
    writeln!(out)
}

/// Three significant digits.
fn number(value: f32) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    match digits {
        ..0 => format!("{value:.0}"),
        0..6 => format!("{value:.*}", digits as usize),
        _ => format!("{value:.2e}"),
    }
}

/// Every number of every token, one line each; as many columns as `width` holds.
pub fn numbers(
    out: &mut dyn Write,
    tokens: &Tokens,
    trace: &Trace,
    width: usize,
) -> io::Result<()> {
    const TOKEN: usize = 16;
    let names: Vec<&Column> = {
        let mut left = width.saturating_sub(6 + TOKEN);
        let fits = |column: &&Column| {
            let needed = column.name.width().max(8) + 2;
            let fits = needed <= left;
            left = left.saturating_sub(needed);
            fits
        };
        tokens.columns.iter().take_while(fits).collect()
    };
    write!(out, "{:>5} {:<TOKEN$}", "at", "token")?;
    for column in &names {
        write!(out, "  {:>8}", column.name)?;
    }
    writeln!(out)?;
    let positions = tokens.view().positions()[trace.rows.clone()].to_vec();
    for ((row, piece), position) in trace.rows.clone().zip(&trace.pieces).zip(positions) {
        let mut text = shown(piece);
        while text.width() > TOKEN {
            text.pop();
        }
        let pad = " ".repeat(TOKEN - text.width());
        write!(out, "{position:>5} {text}{pad}")?;
        for column in &names {
            let width = column.name.width().max(8);
            write!(out, "  {:>width$}", number(column.values[row]))?;
        }
        writeln!(out)?;
    }
    let hidden = tokens.columns.len() - names.len();
    if hidden > 0 {
        writeln!(out, "not shown for want of width: {hidden}; --json has all")?;
    }
    Ok(())
}

/// `text` in lines of at most `width` columns, cut where it has to be.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for c in text.chars() {
        let line = lines.last_mut().expect("there is one from the start");
        let mut letter = [0; 4];
        let letter: &str = c.encode_utf8(&mut letter);
        if line.width() + letter.width() > width {
            lines.push(letter.to_owned());
        } else {
            line.push(c);
        }
    }
    lines
}

#[cfg(test)]
mod tests;
