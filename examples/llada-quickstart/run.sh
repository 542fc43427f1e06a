#!/usr/bin/env bash
# The selector's run, then the diffusion student at several tau beside plain fine-tuning, and the
# table. Resumable; options go to `t3s ablate`.
set -euo pipefail
cd "$(dirname "$0")"
if [ -n "${T3S:-}" ]; then t3s() { "$T3S" "$@"; }; else t3s() { cargo run --quiet --release --package t3s -- "$@"; }; fi

t3s run selector.toml
t3s ablate plan.toml --cells cells.toml --baseline plain --out runs/tau "$@"
