//! From files to examples: formats, truncation, warnings, and every way to be wrong.

mod support;

use serde_json::json;
use support::{Folder, after_hash, learnt};
use t3s_core::{
    Corpus,
    plan::{DataFormat, DataPlan, FieldNames, RowFilter, TooLong},
    toml::Value,
};
use t3s_data::{Tokenizer, load_problems};

fn row(question: &str, response: &str) -> String {
    json!({ "question": question, "response": response }).to_string() + "\n"
}

fn warnings(corpus: &Corpus) -> Vec<(&str, &[u64])> {
    let pairs = corpus.warnings.iter();
    pairs
        .map(|w| (w.what.as_str(), w.rows.as_slice()))
        .collect()
}

#[test]
fn one_conversation_in_four_formats_is_one_example() {
    let folder = Folder::new("qwen3");
    let formats = [
        row("2 + 2?", "4 #### 4"),
        json!({ "messages": [
            { "role": "user", "content": "2 + 2?" },
            { "role": "assistant", "content": "4 #### 4" },
        ] })
        .to_string(),
        json!({ "conversations": [
            { "from": "human", "value": "2 + 2?" },
            { "from": "gpt", "value": "4 #### 4" },
        ] })
        .to_string(),
    ];
    let examples: Vec<_> = formats
        .iter()
        .map(|text| {
            let corpus = folder.load(&folder.data("d.jsonl", text)).unwrap();
            assert!(corpus.warnings.is_empty(), "{:?}", corpus.warnings);
            corpus.examples
        })
        .collect();
    assert_eq!(examples[0], examples[1]);
    assert_eq!(examples[0], examples[2]);
    let example = &examples[0][0];
    let tokenised = json!({
        "input_ids": example.ids, "prompt_length": example.prompt_len, "answer": 4,
    });
    let corpus = folder
        .load(&folder.data("d.jsonl", &tokenised.to_string()))
        .unwrap();
    assert_eq!(corpus.examples[0], *example);
    assert_eq!(example.answer.as_deref(), Some("4"));
}

#[test]
fn parquet_rows_are_rows() {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray},
        datatypes::UInt32Type,
    };

    let folder = Folder::new("qwen3");
    let write = |name: &str, columns: Vec<(&str, ArrayRef)>| {
        let path = folder.folder.path().join(name);
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        DataPlan::new(path)
    };
    let text = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let plan = write(
        "text.parquet",
        vec![
            ("question", text(["2 + 2?", "1 + 1?"])),
            ("response", text(["4 #### 4", "2 #### 2"])),
        ],
    );
    let jsonl = row("2 + 2?", "4 #### 4") + &row("1 + 1?", "2 #### 2");
    let expected = folder.load(&folder.data("d.jsonl", &jsonl)).unwrap();
    assert_eq!(folder.load(&plan).unwrap().examples, expected.examples);

    let ids = [
        Some(vec![Some(5), Some(6), Some(7)]),
        Some(vec![Some(8), Some(9)]),
    ];
    let plan = write(
        "ids.parquet",
        vec![
            (
                "input_ids",
                Arc::new(ListArray::from_iter_primitive::<UInt32Type, _, _>(ids)),
            ),
            ("prompt_length", Arc::new(Int64Array::from(vec![1, 1]))),
        ],
    );
    let corpus = folder.load(&plan).unwrap();
    assert_eq!(corpus.examples[0].ids, [5, 6, 7]);
    assert_eq!(corpus.examples[0].trainable, [false, true, true]);
    let path = folder.folder.path().join("cut.parquet");
    let bytes = std::fs::read(&plan.train).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let message = folder.load(&DataPlan::new(path)).unwrap_err().to_string();
    assert!(message.contains("not a whole Parquet file"), "{message}");
}

#[test]
fn mask_and_weight_are_two_columns_and_survive_truncation() {
    let folder = Folder::new("qwen3");
    let rows = json!({
        "input_ids": [1, 2, 3, 4, 5, 6],
        "prompt_length": 2,
        "weights": [9.0, 9.0, 0.0, 0.5, 1.0, 2.0],
    });
    let mut plan = folder.data("d.jsonl", &rows.to_string());
    plan.max_tokens = 5;
    let corpus = folder.load(&plan).unwrap();
    let example = &corpus.examples[0];
    assert_eq!(example.ids, [1, 2, 3, 4, 5]);
    assert_eq!(example.trainable, [false, false, true, true, true]);
    assert_eq!(example.weights[2..], [0.0, 0.5, 1.0]);
    let expected: &[(&str, &[u64])] = &[("longer than data.max_tokens, cut off at the end", &[0])];
    assert_eq!(warnings(&corpus), expected);
}

#[test]
fn too_long_can_be_dropped_or_refused() {
    let folder = Folder::new("qwen3");
    let text = row("a", "b") + &row("a", &"long ".repeat(40)) + &row("c", "d");
    let mut plan = folder.data("d.jsonl", &text);
    plan.max_tokens = 60;
    plan.too_long = TooLong::Drop;
    let corpus = folder.load(&plan).unwrap();
    let ids: Vec<u64> = corpus.examples.iter().map(|e| e.id).collect();
    assert_eq!(ids, [0, 2]);
    assert_eq!(warnings(&corpus)[0].1, [1]);
    plan.too_long = TooLong::Error;
    let message = folder.load(&plan).unwrap_err().to_string();
    assert!(
        message.contains("d.jsonl:2: ") && message.contains("data.max_tokens = 60"),
        "{message}"
    );
}

#[test]
fn an_empty_mask_is_counted_and_none_left_is_an_error() {
    let folder = Folder::new("qwen3");
    let empty = json!({ "input_ids": [1, 2], "prompt_length": 2 }).to_string() + "\n";
    let good = json!({ "input_ids": [1, 2], "prompt_length": 1 }).to_string() + "\n";
    let corpus = folder
        .load(&folder.data("d.jsonl", &format!("{empty}{good}{empty}")))
        .unwrap();
    assert_eq!(corpus.examples.len(), 1);
    let expected: &[(&str, &[u64])] = &[("no trainable token, left out", &[0, 2])];
    assert_eq!(warnings(&corpus), expected);
    let message = folder.refused(&empty);
    assert_eq!(
        message,
        "d.jsonl: no example is left (1 rows: no trainable token, left out)"
    );
    let mut plan = folder.data("d.jsonl", &row("a long question", "b"));
    plan.max_tokens = 3;
    let message = folder.load(&plan).unwrap_err().to_string();
    assert!(
        message.contains("no trainable token left after truncation"),
        "{message}"
    );
}

#[test]
fn broken_rows_are_named_with_what_was_expected() {
    let folder = Folder::new("qwen3");
    let good = row("a", "b");
    for (text, expected) in [
        (
            format!("{good}{{\"question\": 1}}\n"),
            "d.jsonl:2: question: expected a text, found a number",
        ),
        (
            format!("{good}{{\"question\": \n"),
            "d.jsonl:2: broken JSON at column ",
        ),
        (
            format!("{good}[1]\n"),
            "d.jsonl:2: expected one JSON object per line, found a list",
        ),
        (
            "{\"prompt\": \"a\"}\n".into(),
            "d.jsonl:1: the fields prompt are those of no known format",
        ),
        (
            format!("{good}{{\"question\": \"a\"}}\n"),
            "d.jsonl:2: no assistant message",
        ),
        (
            "{\"messages\": []}".into(),
            "d.jsonl:1: messages: expected a list with at least one",
        ),
        (
            "{\"messages\": [{\"role\": \"user\"}]}".into(),
            "d.jsonl:1: messages.0.content: expected a text, found nothing",
        ),
        (
            "{\"conversations\": [{\"from\": \"alien\", \"value\": \"\"}]}".into(),
            "d.jsonl:1: conversations.0.from: unknown speaker \"alien\"",
        ),
        (
            "{\"input_ids\": [1, -2], \"prompt_length\": 1}".into(),
            "d.jsonl:1: input_ids.1: -2 is no token id",
        ),
        (
            "{\"input_ids\": [1, 2]}".into(),
            "d.jsonl:1: has no field prompt_length",
        ),
        (
            "{\"input_ids\": [1, 2], \"prompt_length\": 3}".into(),
            "d.jsonl:1: prompt_length: 3 of 2",
        ),
        (
            "{\"input_ids\": [1, 2], \"prompt_length\": 1, \"weights\": [1]}".into(),
            "d.jsonl:1: weights: 1 for 2 input_ids",
        ),
        (
            "{\"input_ids\": [1, 2], \"prompt_length\": 1, \"weights\": [0, -1]}".into(),
            "d.jsonl:1: weights.1: -1 is no weight",
        ),
        (
            "{\"input_ids\": [1, 2], \"prompt_length\": 1, \"weights\": [0, 1e99]}".into(),
            "d.jsonl:1: weights.1: 1e+99 is no weight",
        ),
        (
            "{\"input_ids\": [1, 2], \"prompt_length\": 1, \"weights\": [0, NaN]}".into(),
            "d.jsonl:1: broken JSON at column 58: expected value (NaN and Infinity are no JSON)",
        ),
        (
            "{\"input_ids\": [1, 500], \"prompt_length\": 1}".into(),
            "d.jsonl:1: token id 500, but the model's vocabulary ends at 500",
        ),
        (String::new(), "d.jsonl: the file is empty"),
        ("\n\n".into(), "d.jsonl: the file has no rows"),
    ] {
        let message = folder.refused(&text);
        assert!(
            message.starts_with(expected),
            "found    {message}\nexpected {expected}"
        );
    }
    let missing = DataPlan::new(folder.folder.path().join("none.jsonl"));
    let message = folder.load(&missing).unwrap_err().to_string();
    assert!(
        folder.short(&message).starts_with("none.jsonl: "),
        "{message}"
    );
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model_is_refused() {
    let folder = Folder::new("qwen3");
    let plan = folder.data("d.jsonl", &row("a", "b"));
    let tokenizer = folder.tokenizer();
    let error = t3s_data::load_corpus(&plan, &tokenizer, 100, 1.0, &after_hash).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("tokenizer.json") && message.contains("vocab_size"),
        "{message}"
    );
}

#[test]
fn rows_are_filtered_and_fields_go_down() {
    let folder = Folder::new("qwen3");
    let row = |right: bool, text: &str| {
        let row = json!({
            "question": "q", "175b.v": { "solution": text, "is_correct": right }, "truth": "x #### 7",
        });
        row.to_string() + "\n"
    };
    let mut plan = folder.data(
        "d.jsonl",
        &(row(true, "a") + &row(false, "b") + &row(true, "c")),
    );
    plan.fields = FieldNames {
        response: "175b.v.solution".into(),
        answer: "truth".into(),
        ..FieldNames::default()
    };
    plan.filter = Some(RowFilter {
        field: "175b.v.is_correct".into(),
        equals: Value::Boolean(true),
    });
    let corpus = folder.load(&plan).unwrap();
    let tokenizer = folder.tokenizer();
    let learnt: Vec<String> = corpus
        .examples
        .iter()
        .map(|e| learnt(&tokenizer, &e.ids, &e.trainable).0.concat())
        .collect();
    assert!(
        learnt[0].contains('a') && learnt[1].contains('c'),
        "{learnt:?}"
    );
    assert!(
        corpus
            .examples
            .iter()
            .all(|e| e.answer.as_deref() == Some("7"))
    );
    plan.filter = Some(RowFilter {
        field: "is_right".into(),
        equals: Value::Boolean(true),
    });
    let message = folder.load(&plan).unwrap_err().to_string();
    assert!(
        message.contains("no row has the field is_right"),
        "{message}"
    );
    plan.filter = None;
    plan.fields.answer = "gold".into();
    let message = folder.load(&plan).unwrap_err().to_string();
    assert!(
        message.contains("d.jsonl:1: has no field gold"),
        "{message}"
    );
}

#[test]
fn hashes_follow_what_they_are_of() {
    let folder = Folder::new("qwen3");
    let plan = folder.data("d.jsonl", &row("a", "b"));
    let first = folder.load(&plan).unwrap().hashes;
    assert_eq!(first, folder.load(&plan).unwrap().hashes);
    let mut cut = plan.clone();
    cut.max_tokens = 12;
    let cut = folder.load(&cut).unwrap().hashes;
    assert_eq!(first.data, cut.data);
    assert_ne!(first.tokens, cut.tokens);
    let other = Folder::new("gemma");
    let other = other
        .load(&other.data("d.jsonl", &row("a", "b")))
        .unwrap()
        .hashes;
    assert_eq!(first.tokenizer, other.tokenizer);
    assert_ne!(first.chat_template, other.chat_template);
}

#[test]
fn problems_are_prompts_with_a_gold_answer() {
    let folder = Folder::new("qwen3");
    let text = json!({ "question": "q", "answer": "so #### 3" }).to_string()
        + "\n"
        + &json!({ "question": "r", "answer": "12" }).to_string()
        + "\n"
        + &json!({ "question": "s", "response": "#### 5" }).to_string();
    let plan = folder.data("p.jsonl", &text);
    let tokenizer = folder.tokenizer();
    let problems = load_problems(
        &plan.train,
        DataFormat::Auto,
        &FieldNames::default(),
        0,
        "Be brief.",
        &tokenizer,
        &after_hash,
    )
    .unwrap();
    let answers: Vec<_> = problems
        .iter()
        .map(|p| p.answer.as_deref().unwrap())
        .collect();
    assert_eq!(answers, ["3", "12", "5"]);
    let prompt = tokenizer.decode(&problems[2].prompt_ids, false).unwrap();
    assert_eq!(
        prompt,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ns<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn real_solutions_are_read() {
    let shared = std::env::var_os("T3S_SHARED").map_or_else(
        || std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        std::path::PathBuf::from,
    );
    let path = shared.join("data/gsm8k/example_model_solutions.jsonl");
    if !path.is_file() {
        eprintln!("SKIPPED: no {}; set T3S_SHARED", path.display());
        return;
    }
    let folder = Folder::new("qwen3");
    let mut plan = DataPlan::new(path);
    plan.limit = 200;
    plan.fields = FieldNames {
        response: "175b_verification.solution".into(),
        answer: "ground_truth".into(),
        ..FieldNames::default()
    };
    plan.filter = Some(RowFilter {
        field: "175b_verification.is_correct".into(),
        equals: Value::Boolean(true),
    });
    let extract = |text: &str| Some(text.rsplit_once("A:")?.1.trim().to_owned());
    let corpus = t3s_data::load_corpus(&plan, &folder.tokenizer(), 500, 1.0, &extract).unwrap();
    assert!(
        (80..150).contains(&corpus.examples.len()),
        "{}",
        corpus.examples.len()
    );
    assert!(corpus.examples.iter().all(|e| e.answer.is_some()));
}

#[test]
fn pieces_of_tokens_make_up_the_text_again() {
    let folder = Folder::new("plain");
    let tokenizer = Tokenizer::load(folder.folder.path(), None).unwrap();
    for text in [
        "",
        "so the answer is 40.",
        " two  spaces\n\nand lines",
        "an emoji 👩‍🔬 and שלום and 你好",
        "</script><b>&amp;",
    ] {
        let ids = tokenizer.encode(text).unwrap();
        let pieces = tokenizer.pieces(&ids).unwrap();
        assert_eq!(pieces.len(), ids.len(), "{text}");
        assert_eq!(pieces.concat(), tokenizer.decode(&ids, false).unwrap());
        assert_eq!(pieces.concat(), text);
    }
    // Half of a character, and then a whole one.
    let mut ids = tokenizer.encode("👩").unwrap();
    assert!(ids.len() > 1, "this tokenizer has no emoji");
    ids.pop();
    ids.extend(tokenizer.encode("ab").unwrap());
    let pieces = tokenizer.pieces(&ids).unwrap();
    assert!(pieces.concat().ends_with("ab"), "{pieces:?}");
    assert!(pieces.concat().starts_with('\u{FFFD}'), "{pieces:?}");
    assert!(tokenizer.pieces(&[9_999_999]).unwrap().concat().is_empty());
}
