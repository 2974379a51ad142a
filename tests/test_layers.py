"""What may import what. The product knows nothing of the laboratory, its core neither an engine nor torch; nothing goes in circles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ADAPTERS = ("feather.vllm", "feather.sglang", "feather.ray")
# Each imports from those before it and from itself.
LABORATORY = ("files", "machine", "stats", "radix", "book", "claims", "workloads", "llm", "kernels", "policies", "model", "train", "engines", "steady", "instrument", "account", "routing", "figures", "studies",
              "artifact")  # fmt: skip
CORE_NEEDS = {"numpy", "xxhash"}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("feather", "lab")
        for path in (ROOT / package).rglob("*.py")
    }


def imported(path: Path, known) -> set[str]:
    """What a file imports, at its top or within a function: modules of ours by their full names, others by their first part."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return {name if name in known else name.split(".")[0] for name in found}


def test_the_product_does_not_import_the_laboratory():
    known = modules()
    for module, path in known.items():
        if module.startswith("feather"):
            assert not [name for name in imported(path, known) if name.split(".")[0] in ("lab", "benchmarks", "tests")], module


def test_the_core_needs_numpy_and_xxhash_alone_and_no_adapter():
    known = modules()
    for module, path in known.items():
        if module.startswith("feather") and not module.startswith(ADAPTERS):
            for name in imported(path, known):
                assert not name.startswith(ADAPTERS), f"{module} imports {name}"
                top = name.split(".")[0]
                assert top == "feather" or top in CORE_NEEDS or top in sys.stdlib_module_names, f"{module} imports {name}"


def test_adapters_do_not_know_each_other():
    known = modules()
    for module, path in known.items():
        for adapter in ADAPTERS:
            if module.startswith(adapter):
                assert not [name for name in imported(path, known) if name.startswith(ADAPTERS) and not name.startswith(adapter)], module


def test_the_laboratory_imports_inward():
    known = modules()
    for module, path in known.items():
        if module.startswith("lab."):
            layer = LABORATORY.index(module.split(".")[1])
            for name in imported(path, known):
                if name.startswith("lab."):
                    assert LABORATORY.index(name.split(".")[1]) <= layer, f"{module} imports {name}"


def test_nothing_is_imported_in_circles():
    known = modules()
    # A package's __init__ gathers its modules for those outside; what stands in it is no module of its own within the package.
    graph = {module: {name for name in imported(path, known) if name in known and name != module} for module, path in known.items()}
    TopologicalSorter(graph).prepare()


def test_files_of_one_package_have_names_that_occur_once():
    names = [path.name for module, path in modules().items() if module.startswith("feather") and path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


def test_the_core_and_the_command_line_load_without_an_engine():
    code = (
        "import sys, feather.options, feather.ray.placement, feather.ray.prompts, feather.ray.statistics, lab.artifact.cli; "
        "heavy = {'torch', 'vllm', 'ray', 'pandas', 'papermill', 'gymnasium', 'stable_baselines3'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
