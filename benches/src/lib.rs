//! What selection and plugins cost. What a model costs is measured by `t3s bench`; its peers are in
//! `peers/`.

/// The value of `--name` on the command line of a benchmark.
pub fn argument(name: &str) -> Option<String> {
    let flag = format!("--{name}");
    let mut arguments = std::env::args().skip_while(|argument| *argument != flag);
    arguments.nth(1)
}

/// The number after `--name`, or `default`.
///
/// # Panics
/// When it is no number.
pub fn number(name: &str, default: usize) -> usize {
    argument(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("--{name} {text}: not a number"))
    })
}
