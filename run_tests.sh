#!/usr/bin/env bash
# Runs the tests; arguments go to pytest. Makes the environment first where it is missing.
set -euo pipefail
cd "$(dirname "$0")"
. requirements/environment.sh
make_environment auto
exec "$PYTHON_VENV" -m pytest "$@"
