"""The vLLM versions that Feather has been tested with. vLLM calls the scheduler interface not public and says that it may change."""

import os

TESTED = ("0.25", "0.31", "0.32", "0.33")  # 0.31 with a model; the others' schedulers alone, driven without one (0.25.1, 0.32.0, 0.33.0)
OVERRIDE = "FEATHER_UNTESTED_VLLM"


def check(version: str) -> None:
    """Raises ImportError for a vLLM version that Feather has not been tested with, unless the environment allows it."""
    if ".".join(version.split(".")[:2]) in TESTED or os.environ.get(OVERRIDE) == "1":
        return
    raise ImportError(
        f"Feather has been tested with vLLM {', '.join(TESTED[:-1])} and {TESTED[-1]}, and this is vLLM {version}: install one "
        f"of those, e.g. pip install 'vllm=={TESTED[-1]}.*', or set {OVERRIDE}=1 to try this one (first run "
        "tests/test_contract.py under it)"
    )
