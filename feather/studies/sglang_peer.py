"""SGLang's own ``SchedulePolicy`` over its own ``RadixCache``, from its published package, on a machine without a GPU.

The scheduling code is plain Python; what it imports besides (kernels, model layers, distributed state, server arguments)
needs a GPU or compiled extensions and takes no part in ordering a queue. Exactly those modules are replaced by stubs.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from importlib.metadata import PackageNotFoundError, version

VERSION = "0.5.9"
STUBS = (
    "orjson", "sgl_kernel", "triton",
    "sglang.srt.configs", "sglang.srt.constrained", "sglang.srt.distributed", "sglang.srt.dllm", "sglang.srt.layers",
    "sglang.srt.metrics", "sglang.srt.model_executor", "sglang.srt.server_args",
)  # fmt: skip


class Peer:
    """A waiting queue under one of SGLang's policies, as its scheduler keeps it.

    Args:
        policy: "lpm" or "dfs-weight".
        cut_off: keep SGLang's rule that LPM falls back to first-come-first-served above 128 waiting requests.
    """

    def __init__(self, policy: str, cut_off: bool):
        radix_cache, schedule_batch, schedule_policy, sampling = load()
        self._key, self._insert_params = radix_cache.RadixKey, radix_cache.InsertParams
        self._request, self._sampling = schedule_batch.Req, sampling.SamplingParams
        self.cache = radix_cache.RadixCache.create_simulated()
        self.policy = schedule_policy.SchedulePolicy(policy, self.cache, False, False, False)
        if not cut_off:
            self.policy._determine_active_policy = lambda waiting: self.policy.policy
        self.waiting: list = []

    def cached(self, tokens: list[int]) -> None:
        """The KV of these tokens is in the cache."""
        self.cache.insert(self._insert_params(key=self._key(token_ids=tokens)))

    def arrive(self, request_id: str, tokens: list[int]) -> None:
        self.waiting.append(self._request(request_id, "", tokens, self._sampling()))

    def schedule(self) -> None:
        """The call that SGLang makes in every step: order the whole waiting queue."""
        self.policy.calc_priority(self.waiting)


def load():
    """SGLang's modules (radix_cache, schedule_batch, schedule_policy, sampling_params). Raises ImportError with the
    mend where the package is missing or of another version."""
    try:
        found = version("sglang")
    except PackageNotFoundError:
        found = None
    if found != VERSION:
        raise ImportError(
            f"SGLang {VERSION} is needed and {found or 'none'} is installed: "
            "python -m pip install --no-deps -r requirements/peers.txt"
        )
    if not any(isinstance(finder, _StubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _StubFinder())
    from sglang.srt.managers import schedule_batch, schedule_policy
    from sglang.srt.mem_cache import radix_cache
    from sglang.srt.sampling import sampling_params

    return radix_cache, schedule_batch, schedule_policy, sampling_params


class _Anything:
    """Stands for any class of a stubbed module: can be called, subscripted, decorated with and inherited from."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

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
