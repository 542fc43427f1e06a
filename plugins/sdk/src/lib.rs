//! What a T3S plugin is written against.
