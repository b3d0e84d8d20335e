#!/bin/sh
# Put the wheels that a GPU machine without network may lack into benchmarks/gpu/wheels (ignored by git): run it where
# there is network. PYTHON_VERSION=3.12 by default; more packages as arguments. Some 50 MB, most of it bitsandbytes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
mkdir -p "$here/wheels"
platforms=""
for n in 1_x86_64 2014_x86_64 _2_17_x86_64 _2_24_x86_64 _2_27_x86_64 _2_28_x86_64; do
    platforms="$platforms --platform manylinux$n"
done
# pydantic's core is pinned by pydantic: pip resolves these with what they need
# shellcheck disable=SC2086
"$python" -m pip download -q --only-binary=:all: --implementation cp --python-version "${PYTHON_VERSION:-3.12}" \
    $platforms -d "$here/wheels" pydantic pyyaml
# without dependencies: torch is there already, and is large. PEFT imports accelerate
# shellcheck disable=SC2086
"$python" -m pip download -q --no-deps --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_VERSION:-3.12}" $platforms -d "$here/wheels" \
    bitsandbytes peft accelerate lazy_loader psutil pytest-xdist execnet hypothesis sortedcontainers typer rich markdown-it-py mdurl \
    pygments shellingham click annotated-doc "$@"
ls -l "$here/wheels"
