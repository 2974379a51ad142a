"""Files that are whole or as they were, and the mark of a folder of results."""

import os
from pathlib import Path

OUT_MARKER = ".made-by-feather"  # stands in every folder of results, so that no other folder is ever cleared


def replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole or as it was before, whenever the program ends."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:  # a full disk must not keep half a file
        partial.unlink(missing_ok=True)
