#!/usr/bin/env bash
# The CUDA compiler and headers from Python wheels, for a machine where no toolkit is installed, and
# cuDNN's headers (cudnn-headers.sh): enough to build with `--features cuda`, not to run (the driver,
# cuBLAS and cuDNN are found at run time).
#
#   tools/cuda-toolkit.sh [FOLDER]     # default: target/cuda-toolkit
#   source FOLDER/env.sh
#
# A folder that is complete is left alone. Needs python3 with venv, and the package index.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-target/cuda-toolkit}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
# One string decides whether what stands there is what this script makes.
contents="cuda 13.0, layout 2"
if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$contents" ]; then
    echo "$folder: complete"
    exit 0
fi
rm -rf "$folder/complete" "$folder/cuda" "$folder/venv"
tools/cudnn-headers.sh "$folder/cudnn-headers"

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88

wheels=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/nvidia
# The wheels' tree has lib where a toolkit has lib64; links leave the wheels as pip made them.
mkdir -p "$folder/cuda/lib64"
cp -rs "$wheels/cu13/bin" "$wheels/cu13/nvvm" "$wheels/cu13/include" "$folder/cuda/"
ln -s "$wheels"/cu13/lib/*.a "$folder/cuda/lib64/"
ln -s lib64 "$folder/cuda/lib"

cat > "$folder/env.sh" <<END
export CUDA_HOME="$folder/cuda" CUDA_PATH="$folder/cuda" NVCC="$folder/cuda/bin/nvcc"
export PATH="$folder/cuda/bin:\$PATH"
source "$folder/cudnn-headers/env.sh"
END
"$folder/cuda/bin/nvcc" --version | tail -n 1
echo "$contents" > "$folder/complete"
echo "$folder: complete; now: source $folder/env.sh"
