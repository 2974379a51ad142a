"""Run a module or a script of an exported tree (no git there) under the revision that the tree was exported from: ``python with_revision.py REVISION (-m MODULE | FILE) …``."""

import runpy
import sys

from lab import machine

revision, *rest = sys.argv[1:]
machine.revision = lambda: revision
if rest[0] == "-m":
    sys.argv = rest[1:]
    runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
else:
    sys.argv = rest
    runpy.run_path(rest[0], run_name="__main__")
