"""Each layer imports only from those before it, and the core needs neither an engine nor torch."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ["core", "workloads", "kernels", "vllm", "sglang", "studies", "artifact"]
CORE = {"hashing", "cht", "agent", "former", "turns", "admission", "memory", "options"}
STEP_MODEL = {"lab.model", "lab.model.hardware", "lab.model.steptime"}  # the rest of lab.model drives an engine, as studies do


def layer(module: str) -> int:
    if module.startswith("lab.model"):
        return 0 if module in STEP_MODEL else LAYERS.index("studies")
    if module in ("lab.train.env", "lab.train"):
        return LAYERS.index("studies")
    part = module.split(".")[1] if "." in module else "core"
    return 0 if part in CORE or part == "core" else LAYERS.index(part)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if node.module == "feather" else [node.module]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_inward():
    for path in (ROOT / "feather").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for imported in imports(path):
            if imported.startswith("feather.") and module != "feather":
                assert layer(imported) <= layer(module), f"{module} imports {imported}"
            if layer(module) <= LAYERS.index("workloads"):
                assert imported.split(".")[0] not in {"vllm", "torch", "pandas"}, f"{module} imports {imported}"


def test_the_core_and_the_command_line_load_without_an_engine():
    code = (
        "import sys, feather.options, lab.artifact.cli; "
        "heavy = {'torch', 'vllm', 'pandas', 'papermill', 'gymnasium', 'stable_baselines3'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
