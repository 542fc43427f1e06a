//! Selection strategies: which tokens are in the loss.

pub mod all;
pub mod anchors;
mod combine;
pub mod dft;
mod ends;
mod excess;
pub mod focal;
pub mod forking;
pub mod gradient_norm;
pub mod gradient_sketch;
pub mod intersect;
pub mod inverse_t3s;
pub mod invert;
pub mod product;
pub mod profit;
pub mod random;
pub mod rho_1;
pub mod schedule;
pub mod shuffled;
pub mod sstoken;
pub mod static_confidence;
pub mod t3s;
pub mod token_cleaning;
pub mod union;
pub mod yet_to_learn;

use t3s_core::TokenView;

/// The default of every rule that reads the trajectory signal.
fn delta_logp() -> String {
    "delta-logp".to_owned()
}

/// Gives each eligible token its `weight`, and every other one 0.
fn weigh(tokens: &TokenView<'_>, out: &mut [f32], weight: impl Fn(usize) -> f32) {
    for (row, (out, eligible)) in out.iter_mut().zip(tokens.eligible()).enumerate() {
        *out = if *eligible { weight(row) } else { 0.0 };
    }
}

/// 1 for what stays in the loss, 0 for what leaves it.
fn keep(stays: bool) -> f32 {
    f32::from(u8::from(stays))
}

#[cfg(test)]
mod tests;
