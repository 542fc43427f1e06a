use t3s_core::TokenTable;

use super::*;

/// Two columns, weights and a text with everything that a terminal could stumble over.
fn subject() -> (Tokens, Trace) {
    let pieces = [
        "Okay",
        ",",
        " so",
        "",
        "👩",
        "\n",
        "שלום",
        "\u{202e}a\u{7}",
        " 4",
        ".",
    ];
    let n = pieces.len();
    let mut table = TokenTable::new(
        vec![7],
        vec![0, n as u32],
        (10..10 + n as u32).collect(),
        (5..5 + n as u32).collect(),
        vec![true; n],
    )
    .unwrap();
    let logp: Vec<f32> = (0..n).map(|i| -(i as f32) / 4.0).collect();
    table.insert("logp", logp).unwrap();
    let delta = [4.0, 0.5, -0.5, 0.0, -3.0, 0.01, -0.01, 0.2, -4.0, 1.0];
    table.insert("delta-c", delta.to_vec()).unwrap();
    let weights = delta.iter().map(|d| f32::from(u8::from(*d <= 0.0)));
    let tokens = Tokens::of_columns(table, Some(weights.collect()));
    let trace = Trace {
        id: 7,
        rows: 0..n,
        pieces: pieces.map(str::to_owned).to_vec(),
        gaps: vec![8],
    };
    (tokens, trace)
}

fn drawn(by: &str, canvas: Canvas) -> String {
    let (tokens, subject) = subject();
    let mut out = Vec::new();
    let column = tokens.column(by).unwrap();
    trace(&mut out, &tokens, &subject, column, canvas).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn without_colours_levels_are_digits_and_dropped_tokens_in_brackets() {
    let canvas = Canvas {
        width: 24,
        colour: false,
    };
    insta::assert_snapshot!("plain", drawn("delta-c", canvas));
    insta::assert_snapshot!("plain_weights", drawn("weight", canvas));
}

#[test]
fn with_colours() {
    let canvas = Canvas {
        width: 40,
        colour: true,
    };
    let text = drawn("delta-c", canvas).replace('\u{1b}', "ESC");
    insta::assert_snapshot!("colours", text);
}

#[test]
fn no_line_is_wider_than_the_terminal_and_nothing_moves_the_cursor() {
    for width in [20, 33, 80] {
        for by in ["weight", "logp", "delta-c"] {
            let canvas = Canvas {
                width,
                colour: false,
            };
            let text = drawn(by, canvas);
            let body = text.lines().filter(|line| !line.contains(": "));
            for line in body {
                assert!(line.width() <= width, "{line:?}");
            }
            assert!(!text.contains('\u{7}') && !text.contains('\u{202e}'));
        }
    }
}

#[test]
fn numbers_of_every_token() {
    let (tokens, subject) = subject();
    let mut out = Vec::new();
    numbers(&mut out, &tokens, &subject, 46).unwrap();
    insta::assert_snapshot!("numbers", String::from_utf8(out).unwrap());
}

#[test]
fn figures_have_three_digits() {
    let shown = [0.0, 1.0, -0.012_34, 123.456, 98_765.0, 1.5e-7].map(number);
    assert_eq!(shown, ["0", "1.00", "-0.0123", "123", "98765", "1.50e-7"]);
}
