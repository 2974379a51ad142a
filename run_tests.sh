#!/usr/bin/env bash
# Runs the tests, and every notebook at its smallest size (notebooks/conftest.py); arguments, if any, go to pytest instead.
# Makes the environment first where it is missing.
set -euo pipefail
cd "$(dirname "$0")"
. requirements/environment.sh
make_environment auto
[ $# -gt 0 ] || set -- tests notebooks --nbval-lax -n 2 --dist loadfile  # not more: a worker may hold an engine
exec "$PYTHON_VENV" -m pytest "$@"
