#!/usr/bin/env bash
# Runs ruff, basedpyright and the tests: bash launch/test.sh [pytest arguments, e.g. -m "not slow"].
# Makes .venv first if there is none. One process per core runs the test files; -n 0: a single process, for a debugger.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
ruff check .
ruff format --check .
basedpyright
exec python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
