#!/usr/bin/env bash
# Reruns the studies: ./run_all.sh [--backend auto|gpu|cpu|sim] [--profile smoke|default|full] [--only 10,E3]
#                                  [--out DIR] [--resume] [--rehearse] [--list]
# Makes the environment first where it is missing. README.md and artifact.md say what comes out.
set -euo pipefail
export FEATHER_TYPED_IN=$PWD
cd "$(dirname "$0")"
. requirements/environment.sh

# The command line is checked with any supported Python, before minutes go into an environment.
system_python=$(supported_python) || exit 2
case " $* " in *" --help "* | *" -h "* | *" --list "*) exec "$system_python" -m lab.artifact.cli "$@" ;; esac
flavour=$("$system_python" -m lab.artifact.cli "$@" --check) || exit $?

make_environment "$flavour"
exec "$PYTHON_VENV" -m lab.artifact.cli "$@"
