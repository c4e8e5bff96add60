# Sourced by the other scripts: changes to the repository and makes its .venv if that is missing or older than the pins.
# pip's own settings apply (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf). PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv_stamp() { cat constraints.txt setup.cfg setup.py pyproject.toml | cksum; }

if [ ! -x .venv/bin/python ] || [ "$(cat .venv/stamp 2>/dev/null)" != "$(venv_stamp)" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "error: $("$python" --version) is too old: set PYTHON to a Python of 3.10 or newer" >&2
        exit 2
    }
    echo "Making .venv (once; pip downloads torch and the packages of setup.cfg)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
    venv_stamp > .venv/stamp
fi
export PATH="$PWD/.venv/bin:$PATH"
