"""SGLang's scheduling code on a machine without a GPU.

That code is plain Python; what it imports besides (kernels, model layers, distributed state) needs a GPU or compiled
extensions and takes no part in scheduling. Exactly those modules are replaced by stubs.
"""

import importlib.abc
import importlib.machinery
import sys
import types

STUBS = (
    "orjson", "sgl_kernel", "sglang.srt.configs", "sglang.srt.constrained", "sglang.srt.distributed", "sglang.srt.dllm",
    "sglang.srt.eplb", "sglang.srt.layers", "sglang.srt.managers.mm_utils", "sglang.srt.managers.tp_worker",
    "sglang.srt.metrics", "sglang.srt.model_loader", "sglang.srt.models", "sglang.srt.multimodal", "sglang.srt.multiplex",
    "sglang.srt.utils.hf_transformers_utils", "sglang.srt.weight_sync",
)  # fmt: skip


def stub() -> None:
    """From now on this process imports SGLang without a GPU: to read or test its scheduling, never to serve."""
    if not any(isinstance(finder, _StubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StubFinder())


class _Anything:
    """Stands for any class of a stubbed module: can be called, subscripted, decorated with and inherited from; asked
    whether something is so (a feature of some GPU), it says no."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __bool__(self):
        return False

    def __class_getitem__(cls, item):
        return cls


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if any(fullname == stub or fullname.startswith(stub + ".") for stub in STUBS):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)

        def attribute(name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (_Anything,), {})

        module.__getattr__ = attribute
        return module

    def exec_module(self, module):
        pass
