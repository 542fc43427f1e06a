//! Every forward and backward pass against naive f64 oracles, and the laws they obey.

mod decoder;
mod head;
mod layers;
mod model;
mod oracle;
