import os

import pytest

# vLLM reads these at import: nothing is fetched, and its start-up chatter stays out of the test output.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Notebooks of one cell each in place of the real ones, and a book of them: returns a function name → cell that makes them, where
    ``one10`` stands for ``10_one``."""
    import nbformat

    from lab import book

    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(book, "NOTEBOOKS", folder)
    monkeypatch.setattr(book, "ENTRIES", {})

    def make(**cells):
        for name, source in cells.items():
            name = f"{name[-2:]}_{name[:-2]}"
            parameters = nbformat.v4.new_code_cell(f"backend = out = None\nname = '{name[:2]}'", metadata={"tags": ["parameters"]})
            made = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(source)])
            made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
            nbformat.write(made, folder / f"{name}.ipynb")
            book.ENTRIES[name] = book.Entry(name, {"cpu": [2 / 60] * 3})
        return folder

    return make
