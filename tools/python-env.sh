#!/usr/bin/env bash
# The Python side of the parity tests and of the benchmark peers, into .venv (ignored by git).
# Without it those tests say SKIPPED. Needs Python 3.10 or later and about 6 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m venv .venv
.venv/bin/pip install --quiet \
    torch==2.11.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6 \
    pyarrow==26.0.1 pandas==3.1.1 polars==2.1.0 tensorboard==2.21.0
echo "ready: the tests find .venv by themselves; or set T3S_PYTHON to another interpreter"
