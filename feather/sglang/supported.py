"""Which SGLang this adapter is for, and what its policy is called there."""

from importlib.metadata import PackageNotFoundError, version

POLICY = "feather"
VERSION = "0.5.9"


def check_version() -> None:
    """Raises ImportError with the mend where SGLang is missing or is another release than the one that Feather has been
    tested with: the seam is SGLang's inside, which changes from release to release."""
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
    """Why nothing of SGLang's can be run here, with the mend; None where it can."""
    try:
        check_version()
    except ImportError as error:
        return str(error)
    return None
