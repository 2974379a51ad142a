"""The SGLang version that the adapter is for, and the name of Feather's policy there."""

from importlib.metadata import PackageNotFoundError, version

POLICY = "feather"
VERSION = "0.5.9"


def check_version() -> None:
    """Raises ImportError, with the mend, if SGLang is missing or is not the release that Feather has been tested with. The adapter
    uses SGLang's internals, which change from release to release."""
    try:
        found = version("sglang")
    except PackageNotFoundError:
        found = None
    if found != VERSION:
        raise ImportError(
            f"Feather needs SGLang {VERSION} and {f'this is SGLang {found}' if found else 'none is installed'}: "
            f"pip install 'sglang=={VERSION}' (to read its scheduling code without a GPU: "
            "python -m pip install --no-deps -r requirements/peers.txt)"
        )


def missing() -> str | None:
    """Why SGLang cannot be used here, with the mend; None if it can."""
    try:
        check_version()
    except ImportError as error:
        return str(error)
    return None
