"""``pytest --nbval-lax notebooks``: every notebook at its smallest size, writing into a temporary folder."""

import os

import pytest
from nbval.plugin import IPyNbFile

_start = IPyNbFile.setup


def pytest_configure(config) -> None:
    """Notebooks run with the Python that runs the tests, whatever kernel is called "python3" here."""
    config.option.nbval_current_env = not config.option.nbval_kernel_name


def _start_at_smallest_size(self) -> None:
    """nbval passes no parameters to a notebook; its parameters cell takes them from the environment of the kernel.

    A kernel that sees PYTEST_CURRENT_TEST gives its standard output no file descriptor, and vLLM's start asks for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATHER_PROFILE", os.environ.get("FEATHER_PROFILE", "smoke"))
        patch.setenv("FEATHER_OUT", str(self.config._tmp_path_factory.mktemp(self.path.stem)))
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)
        _start(self)


IPyNbFile.setup = _start_at_smallest_size
