#!/usr/bin/env bash
# Runs the tests, and the notebooks that are tests too; arguments, if any, go to pytest instead.
# Makes the environment first where it is missing.
set -euo pipefail
cd "$(dirname "$0")"
. requirements/environment.sh
make_environment auto
[ $# -gt 0 ] || set -- tests --nbval-lax notebooks/00_environment.ipynb
exec "$PYTHON_VENV" -m pytest "$@"
