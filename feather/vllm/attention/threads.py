"""Runs C code on the threads that PyTorch's and vLLM's own kernels run on.

A second pool would compete with theirs: after each parallel region OpenMP's idle threads spin for a while, on the cores that ours would need.
"""

import ctypes
from functools import cache
from typing import Any


@cache
def openmp() -> Any:
    """``GOMP_parallel`` of the OpenMP library that PyTorch has loaded: GNU's, or the one that stands in for it where one is preloaded. Raises
    OSError where there is none."""
    for library in (None, "libgomp.so.1"):  # None: what is visible to all, such as a preloaded library
        try:
            function = ctypes.CDLL(library).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
        return function
    raise OSError("PyTorch here has no OpenMP library that can be called (GOMP_parallel)")


def run(function: int, argument: int, threads: int) -> None:
    """Call the C function at an address with an argument, on so many threads at once; returns when all have. The GIL is free meanwhile."""
    openmp()(function, argument, threads, 0)
