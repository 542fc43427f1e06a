//! `t3s tokenizer`: a BPE tokenizer from the texts of data files.

use t3s_data::{texts::texts_of, train_bpe};

use crate::{args::TokenizerArgs, failure::Failure};

/// Trains a tokenizer.
pub fn run(args: &TokenizerArgs) -> Result<(), Failure> {
    let mut texts = Vec::new();
    for file in &args.files {
        texts.extend(texts_of(file, &args.fields)?);
    }
    let n = train_bpe(texts.into_iter(), args.vocab, &args.out)?;
    println!("{n} tokens: {}", args.out.display());
    Ok(())
}
