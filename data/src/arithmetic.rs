//! A synthetic reasoning task with verifiable answers: two or three steps of arithmetic, told in two
//! styles. The student's own is terse; the teacher's is longer, in words, and sometimes checks a
//! step. Every row is a function of (seed, split, index).

use serde_json::{Value, json};
use t3s_core::CounterRng;

/// Who tells the solution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `7+5=12 12-3=9 #### 9`
    Student,
    /// `Okay, let me think. The number is 7. Next I add 5 to 7, which gives 12. ... #### 9`
    Teacher,
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

/// Row `index` of the task: `{"question": ..., "response": ..., "answer": ...}`, the response in
/// `style`. The problem does not depend on the style.
pub fn row(seed: u64, split: Split, style: Style, index: u64) -> Value {
    let mut draws = Draws {
        rng: CounterRng::new(seed, "arithmetic"),
        row: index,
        next: 0,
    };
    let problem = loop {
        let problem = Problem::draw(&mut draws);
        if problem.split() == split {
            break problem;
        }
    };
    let response = match style {
        Style::Student => problem.student(),
        Style::Teacher => problem.teacher(&mut draws),
    };
    json!({
        "question": problem.question(),
        "response": response,
        "answer": problem.answer().to_string(),
    })
}

impl Problem {
    fn draw(draws: &mut Draws) -> Self {
        let start = draws.between(2, 20);
        let mut before = start;
        let mut steps = Vec::new();
        for _ in 0..draws.one_of(&[2, 3]) {
            let step = loop {
                let operator = draws.one_of(&['+', '-', '*']);
                let operand = match operator {
                    '*' => draws.between(2, 5),
                    _ => draws.between(2, 20),
                };
                let after = match operator {
                    '+' => before + operand,
                    '-' => before - operand,
                    _ => before * operand,
                };
                if (0..=99).contains(&after) {
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

    fn teacher(&self, draws: &mut Draws) -> String {
        let mut text = format!("Okay, let me think. The number is {}. ", self.start);
        for step in &self.steps {
            let Step {
                operator,
                operand,
                before,
                after,
            } = step;
            let opening = draws.one_of(&["So now I", "Next I", "Then I"]);
            let (does, check) = match operator {
                '+' => (
                    format!("add {operand} to {before}"),
                    format!("{after} minus {operand} is {before}"),
                ),
                '-' => (
                    format!("take {operand} from {before}"),
                    format!("{after} plus {operand} is {before}"),
                ),
                _ => (
                    format!("multiply {before} by {operand}"),
                    format!("{after} over {operand} is {before}"),
                ),
            };
            text += &format!("{opening} {does}, which gives {after}. ");
            if draws.between(0, 1) == 1 {
                text += &format!("Wait, check: {check}. ");
            }
        }
        let answer = self.answer();
        text + &format!("So the answer is {answer}. #### {answer}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rows(seed: u64, split: Split, style: Style, n: u64) -> Vec<Value> {
        (0..n).map(|index| row(seed, split, style, index)).collect()
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
            let student = row(2, Split::Train, Style::Student, index);
            let teacher = row(2, Split::Train, Style::Teacher, index);
            assert_eq!(student["question"], teacher["question"]);
            assert_eq!(student["answer"], teacher["answer"]);
            let ending = format!("#### {}", text(&teacher, "answer"));
            assert!(text(&teacher, "response").ends_with(&ending));
            own += text(&student, "response").len();
            teachers += text(&teacher, "response").len();
        }
        assert!(teachers > 3 * own, "{teachers} {own}");
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
