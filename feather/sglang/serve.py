"""SGLang's server with Feather: ``python -m feather.sglang.serve --model-path … --schedule-policy feather``.

Takes SGLang's arguments; Feather's options are read from the environment variable FEATHER_OPTIONS, a JSON object. SGLang 0.5.23
loads Feather by itself, so there its own command will do.
"""

import os
import sys

from feather.options import Options
from feather.sglang import install

install(Options.from_environment().flat())  # at the top level: in SGLang 0.5.9 the scheduler's process imports this module again

if __name__ == "__main__":
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    try:
        run_server(prepare_server_args(sys.argv[1:]))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
