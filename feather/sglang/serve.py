"""SGLang's server with Feather: ``python -m feather.sglang.serve --model-path … --schedule-policy feather``.

Takes SGLang's arguments; Feather's options are read from the environment variable FEATHER_OPTIONS, a JSON object.
"""

import json
import os
import sys

from feather.settings import shown
from feather.sglang import install

VARIABLE = "FEATHER_OPTIONS"


def options() -> dict:
    """Feather's options from the environment. Raises ValueError for text that is no JSON object."""
    text = os.environ.get(VARIABLE, "{}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{VARIABLE}={shown(text)} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f'{VARIABLE}={shown(text)} must be a JSON object, e.g. \'{{"policy": "never_stop"}}\'')
    return found


install(options())  # at the top level: the scheduler's process imports this module again

if __name__ == "__main__":
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    try:
        run_server(prepare_server_args(sys.argv[1:]))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
