//! From a plan to a run folder: stages, cache, resume, evaluation.
