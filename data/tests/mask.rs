//! The response mask on templates of several families: exactly what the assistant wrote is learnt,
//! with the token that ends its turn.

#[expect(dead_code, reason = "used in part")]
mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Folder, learnt};
use t3s_data::response_mask::{Tokenized, tokenize};

fn conversation(turns: &[(&str, &str)]) -> Vec<Value> {
    turns
        .iter()
        .map(|(role, content)| json!({ "role": role, "content": content }))
        .collect()
}

/// What is learnt, everything, and the prompt of the last turn.
fn masked(template: &str, turns: &[(&str, &str)]) -> (Vec<String>, String, String) {
    let tokenizer = Folder::new(template).tokenizer();
    let Tokenized {
        ids,
        trainable,
        prompt_len,
    } = tokenize(&conversation(turns), &tokenizer).unwrap();
    let (learnt, text) = learnt(&tokenizer, &ids, &trainable);
    let prompt = tokenizer.decode(&ids[..prompt_len], false).unwrap();
    (learnt, text, prompt)
}

const ONE: [(&str, &str); 2] = [
    ("user", "2 + 2?"),
    ("assistant", "<think>\nhm\n</think>\n\n4"),
];

#[test]
fn qwen3_keeps_its_reasoning() {
    let (learnt, text, prompt) = masked("qwen3", &ONE);
    assert_eq!(learnt, ["<think>\nhm\n</think>\n\n4<|im_end|>"]);
    let expected = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(prompt, expected);
    assert_eq!(text, format!("{expected}{}", learnt[0]));
}

#[test]
fn qwen3_writes_an_empty_reasoning_block_itself() {
    let (learnt, _, prompt) = masked("qwen3", &[("user", "2 + 2?"), ("assistant", "4")]);
    assert_eq!(learnt, ["<think>\n\n</think>\n\n4<|im_end|>"]);
    assert!(prompt.ends_with("assistant\n"));
}

#[test]
fn qwen3_cuts_the_reasoning_of_earlier_turns() {
    let (learnt, text, prompt) = masked(
        "qwen3",
        &[
            ("system", "Be brief."),
            ONE[0],
            ONE[1],
            ("user", "And 3?"),
            ("assistant", "<think>\nso\n</think>\n\n7"),
        ],
    );
    // What is learnt of the first turn is what is left of it.
    assert_eq!(
        learnt,
        ["4<|im_end|>", "<think>\nso\n</think>\n\n7<|im_end|>"]
    );
    assert!(text.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n"));
    assert!(
        prompt
            .ends_with("4<|im_end|>\n<|im_start|>user\nAnd 3?<|im_end|>\n<|im_start|>assistant\n")
    );
}

#[test]
fn what_comes_after_the_last_answer_is_left_out() {
    let turns = [ONE[0], ("assistant", "4"), ("user", "Thanks.")];
    let (learnt, text, _) = masked("qwen3", &turns);
    assert_eq!(learnt.len(), 1);
    assert!(text.ends_with("4<|im_end|>"), "{text}");
}

#[test]
fn llama3_needs_no_generation_tags() {
    let turns = [
        ONE[0],
        ("assistant", " 4 "),
        ("user", "And 3?"),
        ("assistant", "7"),
    ];
    let (learnt, text, prompt) = masked("llama3", &turns);
    assert_eq!(learnt, ["4<|eot_id|>", "7<|eot_id|>"]);
    assert!(text.starts_with("<bos><|start_header_id|>system<|end_header_id|>\n\nToday Date: "));
    assert!(prompt.ends_with("<|start_header_id|>assistant<|end_header_id|>\n\n"));
}

#[test]
fn gemma_calls_the_assistant_model() {
    let turns = [
        ONE[0],
        ("assistant", "4"),
        ("user", "And 3?"),
        ("assistant", "7"),
    ];
    let (learnt, text, _) = masked("gemma", &turns);
    assert_eq!(learnt, ["4<end_of_turn>", "7<end_of_turn>"]);
    assert!(
        text.starts_with("<bos><start_of_turn>user\n2 + 2?<end_of_turn>\n<start_of_turn>model\n")
    );
}

#[test]
fn a_template_may_refuse() {
    let tokenizer = Folder::new("gemma").tokenizer();
    let refused = |turns: &[(&str, &str)]| {
        let error = tokenize(&conversation(turns), &tokenizer).unwrap_err();
        error.to_string()
    };
    let message = refused(&[("system", "x"), ("user", "y"), ("assistant", "z")]);
    assert!(message.contains("System role not supported"), "{message}");
    let message = refused(&[("user", "y"), ("user", "y"), ("assistant", "z")]);
    assert!(message.contains("must alternate"), "{message}");
}

#[test]
fn turns_without_a_special_token_end_where_the_next_message_begins() {
    let turns = [
        ("user", "a"),
        ("assistant", "bcd"),
        ("user", "e"),
        ("assistant", "f"),
    ];
    let (learnt, text, _) = masked("plain", &turns);
    assert_eq!(text, "user: a\nassistant: bcd\nuser: e\nassistant: f\n");
    assert_eq!(learnt, ["bcd\n", "f\n"]);
}

#[test]
fn special_tokens_inside_an_answer_do_not_end_it() {
    let turns = [
        ("user", "a"),
        ("assistant", "one <|eot_id|> two"),
        ("user", "b"),
        ("assistant", "<start_of_turn>three<end_of_turn> four"),
    ];
    let (learnt, _, _) = masked("qwen3", &turns);
    assert_eq!(
        learnt,
        [
            "one <|eot_id|> two<|im_end|>",
            "<think>\n\n</think>\n\n<start_of_turn>three<end_of_turn> four<|im_end|>"
        ]
    );
}

#[test]
fn a_generation_prompt_may_open_what_the_conversation_does_not() {
    let turns = [("user", "2 + 2?"), ("assistant", "4")];
    let (learnt, text, prompt) = masked("opens_think", &turns);
    assert_eq!(
        text,
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    );
    assert_eq!(learnt, ["4<|im_end|>"]);
    assert!(prompt.ends_with("assistant\n"));
}

#[test]
fn without_an_answer_everything_is_prompt() {
    let tokenizer = Folder::new("qwen3").tokenizer();
    let found = tokenize(&conversation(&ONE[..1]), &tokenizer).unwrap();
    assert_eq!(found.prompt_len, found.ids.len());
    assert!(found.trainable.iter().all(|t| !t));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is said, the prompt is what generation is given, and the rest is learnt.
    #[test]
    fn the_prompt_is_the_generation_prompt(
        question in "[ -~\u{e9}\u{4e2d}\n]{0,30}",
        answer in "[ -~\u{e9}\u{4e2d}\n]{0,30}",
        family in prop::sample::select(vec!["qwen3", "llama3", "gemma"]),
    ) {
        prop_assume!(!question.contains('<') && !answer.contains('<'));
        let tokenizer = Folder::new(family).tokenizer();
        let messages = conversation(&[("user", &question), ("assistant", &answer)]);
        let found = tokenize(&messages, &tokenizer).unwrap();
        let prompt = tokenizer.template().unwrap().render(&messages[..1], true).unwrap();
        prop_assert_eq!(&found.ids[..found.prompt_len], tokenizer.encode(&prompt).unwrap());
        let text = tokenizer.template().unwrap().render(&messages, false).unwrap();
        let decoded = tokenizer.decode(&found.ids, false).unwrap();
        prop_assert_eq!(decoded.trim_end(), text.trim_end());
        let learnt = found.trainable.iter().filter(|t| **t).count();
        prop_assert_eq!(found.prompt_len + learnt, found.ids.len());
        prop_assert!(tokenizer.is_special(*found.ids.last().unwrap()));
    }
}
