#!/usr/bin/env bash
# Makes the virtual environment and installs this checkout into it:
#   tools/install.sh .venv           the package and what it needs
#   tools/install.sh .venv test      what the extra "test" adds to an installed package
# PYTHON names the interpreter (default python3), LORASMITH_NATIVE=0 builds without the C++ extension.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
extra=${2:-}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $python is missing or older than Python 3.11; name another one with PYTHON=/path/to/python3" >&2
    exit 2
fi

# Prints the folder of a torch that lorasmith supports, nothing where there is none.
torch_folder() {
    "$1" - <<'EOF'
import importlib.metadata as metadata
try:
    torch = metadata.distribution("torch")
except metadata.PackageNotFoundError:
    raise SystemExit
if tuple(int(part) for part in torch.version.split(".")[:2]) >= (2, 11):
    print(torch.locate_file(""))
EOF
}

if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv"
    # A torch that is there already stays in use: it may be the build that this machine's GPU needs.
    found=$(torch_folder "$python")
    if [ -n "$found" ]; then
        echo "keeping the torch in $found"
        packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        echo "$found" > "$packages/torch_of_this_machine.pth"
    fi
fi

constraints=$venv/constraints.txt
if [ -n "$(torch_folder "$venv/bin/python")" ]; then
    grep -v '^torch==' constraints.txt > "$constraints"
else
    cp constraints.txt "$constraints"
fi

# errors only: pip warns of every index that a machine's own settings name and that is not there
if [ -z "$extra" ]; then
    echo "installing lorasmith into $venv"
    "$venv/bin/python" -m pip install --quiet --quiet -c "$constraints" .
else
    # by name: the package stands installed, so only what the extra adds is fetched and nothing is built again
    echo "installing what the extra $extra needs"
    "$venv/bin/python" -m pip install --quiet --quiet -c "$constraints" "lorasmith[$extra]"
fi
