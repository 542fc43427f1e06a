//! What T3S costs, and its peers.
