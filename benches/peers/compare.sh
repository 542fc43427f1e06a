#!/usr/bin/env bash
# The same work by t3s bench and by transformers in turns, and the ratio of their tokens per second.
#     benches/peers/compare.sh FOLDER PAIRS train|score|generate|head [options that both take]
# e.g. benches/peers/compare.sh out 5 train --config qwen3-0.6b --seq 1024 --batch 16
# Every run's JSON goes into FOLDER. T3S names the program (target/release/t3s), T3S_PYTHON a Python with torch
# (.venv/bin/python or python3), PEER_OPTIONS what only the peer takes, such as --compile, T3S_OPTIONS what
# only t3s takes, such as --states 8bit.
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,7s/^# //p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
folder=$1 pairs=$2
shift 2
t3s=${T3S:-$here/../../target/release/t3s}
python=${T3S_PYTHON:-$here/../../.venv/bin/python}
[ -x "$python" ] || python=python3
mkdir -p "$folder"
for pair in $(seq "$pairs"); do
    # shellcheck disable=SC2086 # several options
    "$t3s" --json bench "$@" ${T3S_OPTIONS:-} >"$folder/$pair-t3s.json"
    # shellcheck disable=SC2086 # several options
    "$python" "$here/hf_train.py" "$@" ${PEER_OPTIONS:-} >"$folder/$pair-peer.json"
done
"$python" "$here/ratio.py" "$folder" "$pairs"
