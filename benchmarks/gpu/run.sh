#!/bin/sh
# The GPU's tests and figures on any CUDA machine, without network, in under 9 minutes; results/gpu.json, table and plot.
#
#   benchmarks/gpu/run.sh [--only PART ...] [--most-seconds 525] [--out FILE]      (docs/gpu.md)
#
# PYTHON is the interpreter that has torch (3.12 or newer, torch 2.11, triton 3.6, transformers 5.17 at least). What it
# lacks is taken from benchmarks/gpu/wheels, if fetch_wheels.sh has filled that.
# lorasmith runs from its source: on the GPU it needs no compiled extension. NATIVE=1 builds that, too (a C++ compiler,
# nanobind and scikit-build-core must be there), for the sake of the tests that compare with it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
site=${SITE:-${TMPDIR:-/tmp}/lorasmith-gpu-site}

# only wheels whose distribution is missing are unpacked, beside the interpreter's own packages
missing=$("$python" "$here/missing_wheels.py" "$here/wheels")
if [ -n "$missing" ]; then
    # file names of wheels have no spaces
    # shellcheck disable=SC2086
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" $missing
fi
if [ "${NATIVE:-0}" = 1 ]; then
    "$python" -m pip install -q --no-index --no-deps --no-build-isolation --no-cache-dir --upgrade \
        --target "$site/native" "$repository"
    cp "$site"/native/lorasmith/ops/_native*.so "$repository/src/lorasmith/ops/"
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
status=0
"$python" "$here/run.py" "$@" || status=$?
"$python" "$here/gpu_table.py" "$@" --plot || status=$?
exit $status
