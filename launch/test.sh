#!/usr/bin/env bash
# Runs ruff, basedpyright and the tests: bash launch/test.sh [pytest arguments, e.g. -m "not slow"].
# Makes .venv first if there is none.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
ruff check .
ruff format --check .
basedpyright
exec python -m pytest "$@"
