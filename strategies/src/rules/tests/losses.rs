//! Rules that compare the losses of two models.

use proptest::prelude::*;

use super::*;

/// A table with both log-probabilities, and the excess under `excess` for the checks.
fn pairs(tokens: &[Token], reference: &[f32], names: [&str; 2]) -> TokenTable {
    let mut table = table(names[0], tokens);
    let (eligible, student) = {
        let view = table.view();
        (
            view.eligible().to_vec(),
            view.column(names[0]).unwrap().to_vec(),
        )
    };
    let of = |row: usize| reference[row % reference.len()];
    let reference: Vec<f32> = (0..student.len())
        .map(|row| if eligible[row] { of(row) } else { f32::NAN })
        .collect();
    let excess = reference.iter().zip(&student).map(|(r, s)| (-s) - (-r));
    table.insert("excess", excess.collect()).unwrap();
    table.insert(names[1], reference).unwrap();
    table
}

fn logps() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-6i8..=0).prop_map(|x| f32::from(x) / 2.0), 1..9)
}

proptest! {
    #[test]
    fn the_largest_excess_stays(
        tokens in tokens(),
        reference in logps(),
        percent in 1usize..=100,
        global: bool,
    ) {
        let table = pairs(&tokens, &reference, ["logp@base", "logp@reference"]);
        let scope = if global { "global" } else { "example" };
        let options = format!("keep = {:?}\nscope = '{scope}'", percent as f64 / 100.0);
        let order = |a: &Row, b: &Row| (b.score + 0.0).total_cmp(&(a.score + 0.0));
        for name in ["rho-1", "token-cleaning"] {
            let weights = select(name, &options, &table, 0).unwrap();
            for scope in scopes(&table, "excess", &weights, global) {
                prop_assert_eq!(first(&scope, percent, order), kept(&scope));
            }
        }
        // Online: the student's are those of the step under way.
        let current = table.view().column("logp@base").unwrap().to_vec();
        let cx = SelectContext::online(0, 5, &current);
        let online = select_in("rho-1", &format!("{options}\nstudent = 'current'"), &table, &cx);
        prop_assert_eq!(online.unwrap(), select("rho-1", &options, &table, 0).unwrap());
    }

    #[test]
    fn token_cleaning_by_threshold(tokens in tokens(), reference in logps(), bound in -2i8..3) {
        let table = pairs(&tokens, &reference, ["logp@base", "logp@reference"]);
        let options = format!("threshold = {bound}.0");
        let weights = select("token-cleaning", &options, &table, 0).unwrap();
        for (_, eligible, excess, weight) in rows(&table, "excess", &weights) {
            let stays = eligible && excess > f32::from(bound);
            prop_assert_eq!(weight, f32::from(u8::from(stays)));
        }
    }

    #[test]
    fn sstoken_keeps_what_was_learnt_most(
        tokens in tokens(),
        now in logps(),
        percent in 1usize..=100,
    ) {
        // The past's loss in excess of today's.
        let table = pairs(&tokens, &now, ["logp@base", "now"]);
        let current = table.view().column("now").unwrap().to_vec();
        let cx = SelectContext::online(0, 5, &current);
        let options = format!("keep = {:?}", percent as f64 / 100.0);
        let weights = select_in("sstoken", &options, &table, &cx).unwrap();
        let order = |a: &Row, b: &Row| (b.score + 0.0).total_cmp(&(a.score + 0.0));
        for scope in scopes(&table, "excess", &weights, false) {
            prop_assert_eq!(first(&scope, percent, order), kept(&scope));
        }
    }
}

#[test]
fn rho_1_by_hand() {
    let tokens: Vec<Token> = [-2.0, -4.0, -1.5, -0.5].map(|s| (0, true, s)).into();
    let table = pairs(
        &tokens,
        &[-1.0, -2.0, -0.5, -0.5],
        ["logp@base", "logp@reference"],
    );
    // Excess: 1, 2, 1, 0.
    let kept = |keep: &str| select("rho-1", keep, &table, 0).unwrap();
    assert_eq!(kept("keep = 0.25"), [0.0, 1.0, 0.0, 0.0]);
    assert_eq!(kept("keep = 0.5"), [1.0, 1.0, 0.0, 0.0]);
    assert_eq!(kept(""), [1.0, 1.0, 1.0, 0.0]);
}
