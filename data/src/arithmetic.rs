//! A synthetic reasoning task with verifiable answers: two or three steps of arithmetic, told in
//! three styles. The student's own is terse; the teacher's is longer, in words, and sometimes checks
//! a step; the tutor's takes each step apart besides, digit by digit, which makes larger numbers
//! easier. Every row is a function of (seed, split, largest number, index).

use serde_json::{Value, json};
use t3s_core::CounterRng;

/// Who tells the solution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `7+5=12 12-3=9 #### 9`
    Student,
    /// `Okay, let me think. The number is 7. Next I add 5 to 7, which gives 12. ... #### 9`
    Teacher,
    /// `... Next I multiply 47 by 6. 40 times 6 is 240, 7 times 6 is 42, 240 plus 42 is 282. ...`
    Tutor,
}

/// Which part of the problems. No problem of [`Split::HeldOut`] is ever in [`Split::Train`],
/// whatever their seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// To learn from.
    Train,
    /// To be examined on.
    HeldOut,
}

/// One step: the operator, its operand, and the number before and after.
struct Step {
    operator: char,
    operand: i64,
    before: i64,
    after: i64,
}

struct Problem {
    start: i64,
    steps: Vec<Step>,
}

/// Draws of one row.
struct Draws {
    rng: CounterRng,
    row: u64,
    next: u64,
}

impl Draws {
    /// Uniform in `low..=high`.
    fn between(&mut self, low: i64, high: i64) -> i64 {
        let width = (high - low + 1) as f64;
        let draw = (self.rng.uniform(self.row, self.next) * width) as i64;
        self.next += 1;
        low + draw.min(high - low)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.between(0, choices.len() as i64 - 1) as usize]
    }
}

/// The smallest bound on a problem's numbers: operands go up to a fifth of it.
pub const SMALLEST_BOUND: u32 = 99;

/// Row `index` of the task: `{"question": ..., "response": ..., "answer": ...}`, the response in
/// `style`. No number of a problem is above `largest`, which is raised to [`SMALLEST_BOUND`]. The
/// problem does not depend on the style.
pub fn row(seed: u64, split: Split, style: Style, largest: u32, index: u64) -> Value {
    let largest = i64::from(largest.max(SMALLEST_BOUND));
    let mut draws = Draws {
        rng: CounterRng::new(seed, "arithmetic"),
        row: index,
        next: 0,
    };
    let problem = loop {
        let problem = Problem::draw(largest, &mut draws);
        if problem.split() == split {
            break problem;
        }
    };
    let response = match style {
        Style::Student => problem.student(),
        Style::Teacher => problem.in_words(&mut draws, Step::at_once),
        Style::Tutor => problem.in_words(&mut draws, Step::in_parts),
    };
    json!({
        "question": problem.question(),
        "response": response,
        "answer": problem.answer().to_string(),
    })
}

impl Problem {
    fn draw(largest: i64, draws: &mut Draws) -> Self {
        let largest_operand = (largest + 1) / 5;
        let largest_factor = if largest > i64::from(SMALLEST_BOUND) {
            9
        } else {
            5
        };
        let start = draws.between(2, largest_operand);
        let mut before = start;
        let mut steps = Vec::new();
        for _ in 0..draws.one_of(&[2, 3]) {
            let step = loop {
                let operator = draws.one_of(&['+', '-', '*']);
                let operand = match operator {
                    '*' => draws.between(2, largest_factor),
                    _ => draws.between(2, largest_operand),
                };
                let after = match operator {
                    '+' => before + operand,
                    '-' => before - operand,
                    _ => before * operand,
                };
                if (0..=largest).contains(&after) {
                    break Step {
                        operator,
                        operand,
                        before,
                        after,
                    };
                }
            };
            before = step.after;
            steps.push(step);
        }
        Self { start, steps }
    }

    fn answer(&self) -> i64 {
        self.steps.last().map_or(self.start, |step| step.after)
    }

    /// One problem in eight is held out, by its text alone.
    fn split(&self) -> Split {
        match CounterRng::new(0, &self.question()).bits(0, 0) % 8 {
            0 => Split::HeldOut,
            _ => Split::Train,
        }
    }

    fn question(&self) -> String {
        let steps: Vec<String> = self
            .steps
            .iter()
            .map(|step| {
                let verb = match step.operator {
                    '+' => "add",
                    '-' => "take",
                    _ => "times",
                };
                format!("{verb} {}", step.operand)
            })
            .collect();
        format!("Start with {}, {}?", self.start, steps.join(", "))
    }

    fn student(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            let Step {
                operator,
                operand,
                before,
                after,
            } = step;
            text += &format!("{before}{operator}{operand}={after} ");
        }
        text + &format!("#### {}", self.answer())
    }

    /// `told` is what follows the opening of a step: how its result comes about.
    fn in_words(&self, draws: &mut Draws, told: fn(&Step) -> String) -> String {
        let mut text = format!("Okay, let me think. The number is {}. ", self.start);
        for step in &self.steps {
            let opening = draws.one_of(&["So now I", "Next I", "Then I"]);
            text += &format!("{opening} {}. ", told(step));
            if draws.between(0, 1) == 1 {
                text += &format!("Wait, check: {}. ", step.check());
            }
        }
        let answer = self.answer();
        text + &format!("So the answer is {answer}. #### {answer}")
    }
}

impl Step {
    fn doing(&self) -> String {
        let Self {
            operand, before, ..
        } = self;
        match self.operator {
            '+' => format!("add {operand} to {before}"),
            '-' => format!("take {operand} from {before}"),
            _ => format!("multiply {before} by {operand}"),
        }
    }

    fn at_once(&self) -> String {
        format!("{}, which gives {}", self.doing(), self.after)
    }

    /// One equation for each non-zero digit: of the operand where it is added or taken, of the
    /// number where it is multiplied.
    fn in_parts(&self) -> String {
        let Self {
            operand, before, ..
        } = *self;
        let (word, sign) = match self.operator {
            '+' => ("plus", 1),
            '-' => ("minus", -1),
            _ => return format!("{}. {}", self.doing(), products(before, operand)),
        };
        let mut parts = Vec::new();
        let mut number = before;
        for part in place_values(operand) {
            let left = match parts.is_empty() {
                true => format!("{number} {word}"),
                false => word.to_owned(),
            };
            number += sign * part;
            parts.push(format!("{left} {part} is {number}"));
        }
        format!("{}. {}", self.doing(), parts.join(", "))
    }

    fn check(&self) -> String {
        let Self {
            operand,
            before,
            after,
            ..
        } = self;
        match self.operator {
            '+' => format!("{after} minus {operand} is {before}"),
            '-' => format!("{after} plus {operand} is {before}"),
            _ => format!("{after} over {operand} is {before}"),
        }
    }
}

/// `number * factor` by the digits of `number`, and the sum of the products.
fn products(number: i64, factor: i64) -> String {
    let values = place_values(number);
    let mut parts: Vec<String> = values
        .iter()
        .map(|value| format!("{value} times {factor} is {}", value * factor))
        .collect();
    let mut sum = values[0] * factor;
    for (at, value) in values[1..].iter().enumerate() {
        let left = if at == 0 {
            format!("{sum} ")
        } else {
            String::new()
        };
        let product = value * factor;
        sum += product;
        parts.push(format!("{left}plus {product} is {sum}"));
    }
    parts.join(", ")
}

/// `407` as `[400, 7]`; zero as itself.
fn place_values(number: i64) -> Vec<i64> {
    if number == 0 {
        return vec![0];
    }
    let mut values = Vec::new();
    let (mut rest, mut unit) = (number, 1);
    while rest > 0 {
        values.push(rest % 10 * unit);
        rest /= 10;
        unit *= 10;
    }
    values.retain(|value| *value != 0);
    values.reverse();
    values
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rows(seed: u64, split: Split, style: Style, n: u64) -> Vec<Value> {
        (0..n)
            .map(|index| row(seed, split, style, 99, index))
            .collect()
    }

    fn text<'v>(row: &'v Value, key: &str) -> &'v str {
        row[key].as_str().expect("a text")
    }

    #[test]
    fn every_equation_of_the_student_holds() {
        for row in rows(1, Split::Train, Style::Student, 200) {
            let (steps, answer) = text(&row, "response").split_once("#### ").unwrap();
            assert_eq!(answer, text(&row, "answer"));
            let mut last = String::new();
            for step in steps.split_whitespace() {
                let (left, right) = step.split_once('=').unwrap();
                let at = left.find(['+', '-', '*']).unwrap();
                let (a, b): (i64, i64) =
                    (left[..at].parse().unwrap(), left[at + 1..].parse().unwrap());
                let value = match &left[at..=at] {
                    "+" => a + b,
                    "-" => a - b,
                    _ => a * b,
                };
                assert_eq!(value.to_string(), right, "{row}");
                last = right.to_owned();
            }
            assert_eq!(last, answer);
        }
    }

    #[test]
    fn the_teacher_is_longer_and_ends_with_the_same_answer() {
        let (mut own, mut teachers) = (0, 0);
        for index in 0..100 {
            let student = row(2, Split::Train, Style::Student, 99, index);
            let teacher = row(2, Split::Train, Style::Teacher, 99, index);
            assert_eq!(student["question"], teacher["question"]);
            assert_eq!(student["answer"], teacher["answer"]);
            let ending = format!("#### {}", text(&teacher, "answer"));
            assert!(text(&teacher, "response").ends_with(&ending));
            own += text(&student, "response").len();
            teachers += text(&teacher, "response").len();
        }
        assert!(teachers > 3 * own, "{teachers} {own}");
    }

    /// Every `a plus b is c` of a text, where a missing `a` is the `c` before it.
    fn assert_equations_hold(text: &str) {
        let mut last = 0;
        for sentence in text.split(['.', ',', ':']) {
            let words: Vec<&str> = sentence.split_whitespace().collect();
            let (left, operation, right, result) = match words[..] {
                [left, operation, right, "is", result] => (Some(left), operation, right, result),
                [operation, right, "is", result] => (None, operation, right, result),
                _ => continue,
            };
            if !["plus", "minus", "times", "over"].contains(&operation) {
                continue;
            }
            let number = |word: &str| word.parse::<i64>().unwrap();
            let (right, result) = (number(right), number(result));
            let left = left.map_or(last, number);
            let value = match operation {
                "plus" => left + right,
                "minus" => left - right,
                "times" => left * right,
                "over" => left / right,
                _ => panic!("{sentence}"),
            };
            assert_eq!(value, result, "{sentence}: {text}");
            last = result;
        }
    }

    #[test]
    fn every_equation_of_the_tutor_holds_and_the_result_is_the_teachers() {
        let mut largest = 0;
        for index in 0..300 {
            let tutor = row(5, Split::Train, Style::Tutor, 999, index);
            let teacher = row(5, Split::Train, Style::Teacher, 999, index);
            assert_eq!(tutor["question"], teacher["question"]);
            assert_eq!(tutor["answer"], teacher["answer"]);
            let ending = format!("#### {}", text(&teacher, "answer"));
            assert!(text(&tutor, "response").ends_with(&ending));
            assert_equations_hold(text(&tutor, "response"));
            largest = largest.max(text(&tutor, "answer").parse().unwrap());
        }
        assert!((100..=999).contains(&largest), "{largest}");
    }

    #[test]
    fn the_tutor_goes_digit_by_digit() {
        let step = |operator, operand, before, after| Step {
            operator,
            operand,
            before,
            after,
        };
        assert_eq!(
            step('*', 6, 147, 882).in_parts(),
            "multiply 147 by 6. 100 times 6 is 600, 40 times 6 is 240, 7 times 6 is 42, \
             600 plus 240 is 840, plus 42 is 882"
        );
        assert_eq!(
            step('-', 108, 367, 259).in_parts(),
            "take 108 from 367. 367 minus 100 is 267, minus 8 is 259"
        );
        assert_eq!(
            step('*', 6, 0, 0).in_parts(),
            "multiply 0 by 6. 0 times 6 is 0"
        );
    }

    #[test]
    fn held_out_problems_are_never_trained_on() {
        let questions = |seed, split| -> BTreeSet<String> {
            let rows = rows(seed, split, Style::Student, 2000);
            rows.iter()
                .map(|row| text(row, "question").to_owned())
                .collect()
        };
        let (train, held_out) = (questions(1, Split::Train), questions(2, Split::HeldOut));
        assert!(train.len() > 1900, "few repetitions: {}", train.len());
        assert!(train.is_disjoint(&held_out));
    }

    #[test]
    fn rows_are_a_function_of_the_seed() {
        let a = rows(3, Split::Train, Style::Teacher, 20);
        assert_eq!(a, rows(3, Split::Train, Style::Teacher, 20));
        assert_ne!(a, rows(4, Split::Train, Style::Teacher, 20));
    }
}
