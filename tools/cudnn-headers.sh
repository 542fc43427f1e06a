#!/usr/bin/env bash
# The headers that attention by cuDNN is compiled with: cuDNN's own and those of cudnn-frontend, from
# Python wheels. cuDNN itself is opened at run time (docs/cuda.md).
#
#   tools/cudnn-headers.sh [FOLDER]    # default: target/cudnn-headers
#   source FOLDER/env.sh
#
# A folder that is complete is left alone. Needs python3 with venv, and the package index.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-target/cudnn-headers}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
# One string decides whether what stands there is what this script makes.
contents="cudnn 9.19, frontend 1.32, layout 1"
if [ -f "$folder/complete" ] && [ "$(cat "$folder/complete")" = "$contents" ]; then
    echo "$folder: complete"
    exit 0
fi
rm -rf "$folder/complete" "$folder/cudnn" "$folder/frontend" "$folder/venv"

python3 -m venv "$folder/venv"
# --no-deps: the frontend would pull in a gigabyte of libraries.
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    nvidia-cudnn-cu13==9.19.0.56 nvidia-cudnn-frontend==1.32.0
wheels=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$folder/cudnn" "$folder/frontend"
cp -r "$wheels/nvidia/cudnn/include" "$folder/cudnn/"
# The frontend's headers name each other by this folder.
cp -r "$wheels/include" "$folder/frontend/"
# The libraries, half a gigabyte, are not for building.
rm -rf "$folder/venv"

cat > "$folder/env.sh" <<END
export CUDNN_INCLUDE="$folder/cudnn/include" CUDNN_FRONTEND_INCLUDE="$folder/frontend/include"
END
echo "$contents" > "$folder/complete"
echo "$folder: complete; now: source $folder/env.sh"
