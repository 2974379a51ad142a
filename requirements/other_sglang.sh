#!/usr/bin/env bash
# Runs tests under another release of SGLang: requirements/other_sglang.sh VERSION [pytest arguments | -m MODULE …]
# Its environment holds that release, what it imports and .venv lacks, and this checkout with its plug-in; all else is borrowed from .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
. requirements/environment.sh
version=${1:?the release of SGLang, e.g. 0.5.23}; shift
make_environment cpu
venv=.venv-sglang-$version
if [ "$(cat "$venv/complete" 2>/dev/null)" != "$version" ] || ! works "$PWD/$venv"; then
  rm -rf "$venv"
  "$PYTHON_VENV" -m venv --without-pip "$venv"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  borrow_packages "$site"
  pip() { "$PYTHON_VENV" -m pip --disable-pip-version-check --python "$venv/bin/python" install --quiet --no-deps "$@"; }
  pip "sglang==$version" orjson gguf
  LC_ALL=C.UTF-8 pip --no-build-isolation --editable .
  lead_to_checkout "$venv"
  # SGLang imports torchvision (image processors), which must fit torch to the byte, and sgl_kernel, of which there is no build for CPUs.
  # Neither is called by what runs here: any name of them will do.
  echo 'import stubs_for_sglang' >"$site/stubs_for_sglang.pth"
  cat >"$site/stubs_for_sglang.py" <<'PY'
import importlib.machinery, sys, types


class Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Stub:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("torchvision", "sgl_kernel"):
            return importlib.machinery.ModuleSpec(name, Stub, is_package=True)

    @staticmethod
    def create_module(spec):
        module = types.ModuleType(spec.name)
        module.__version__ = "0.28.0"

        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (), {})

        module.__getattr__ = attribute
        return module

    @staticmethod
    def exec_module(module):
        pass


sys.meta_path.append(Stub)
PY
  echo "$version" >"$venv/complete"
fi
[ $# -gt 0 ] || set -- tests/test_sglang.py tests/test_sglang_server.py tests/test_baselines.py tests/test_beliefs.py
[ "$1" = -m ] || set -- -m pytest "$@"
exec "$venv/bin/python" "$@"
