//! Training as a whole: the laws of accumulation, resumption, descent, checkpoints, and agreement
//! with transformers, peft and torch.

mod adapters;
mod checkpoints;
mod damaged;
mod descent;
mod laws;
#[path = "../gradients/model.rs"]
mod model;
mod online;
mod python;
mod resume;
mod setup;
mod states;
