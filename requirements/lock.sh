#!/usr/bin/env bash
# Resolves the lock files anew from pyproject.toml. Needs uv (https://docs.astral.sh/uv); nothing else does.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {  # LOCK, then more arguments for uv
  local lock=$1; shift
  uv pip compile --universal --python-version 3.11 --no-annotate --no-header --quiet \
    --extra artifact --extra test --output-file "$lock" pyproject.toml "$@"
  # The whole lock is for one platform: the marker that says so on every line only hides the pins.
  local token
  for token in "python_full_version < '3.14'" "platform_machine == 'x86_64'" "sys_platform == 'linux'"; do
    sed -i -e "s/ and $token//; s/$token and //; s/ ; $token\$//" "$lock"
  done
}

rm -f requirements/gpu.txt requirements/cpu.txt
compile requirements/cpu.txt --extra cpu requirements/cpu.in --override requirements/cpu-overrides.txt
# What Ray adds to it, and no more.
cp requirements/cpu.txt requirements/ray.txt
compile requirements/ray.txt --extra cpu --extra ray requirements/cpu.in --override requirements/cpu-overrides.txt
grep -vxFf requirements/cpu.txt requirements/ray.txt > requirements/ray.added && mv requirements/ray.added requirements/ray.txt
# The same versions wherever both environments have the package.
compile requirements/gpu.txt --extra gpu --constraint requirements/cpu.txt
