#!/usr/bin/env bash
# Runs the tests: bash launch/test.sh [pytest arguments]. Makes .venv first if there is none.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
ruff check .
ruff format --check .
exec python -m pytest "$@"
