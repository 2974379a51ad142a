"""The SGLang releases that the adapter is for, and the name of Feather's policy there."""

from importlib.metadata import PackageNotFoundError, version

POLICY = "feather"
VERSIONS = ("0.5.9", "0.5.23")
"""that of the paper's time, where Feather replaces SGLang's classes, and today's, where it is a plug-in"""


def check_version() -> str:
    """SGLang's version. Raises ImportError, with the mend, if it is missing or is no release that Feather has been tested with: the
    adapter uses SGLang's internals, which change from release to release."""
    try:
        found = version("sglang")
    except PackageNotFoundError:
        found = ""
    if found not in VERSIONS:
        raise ImportError(
            f"Feather needs SGLang {' or '.join(VERSIONS)} and {f'this is SGLang {found}' if found else 'none is installed'}: "
            f"pip install 'sglang=={VERSIONS[-1]}' (to read the scheduling code of {VERSIONS[0]} without a GPU: "
            "python -m pip install --no-deps -r requirements/peers.txt)"
        )
    return found


def missing() -> str | None:
    """Why SGLang cannot be used here, with the mend; None if it can."""
    try:
        check_version()
    except ImportError as error:
        return str(error)
    return None
