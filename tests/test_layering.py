"""The house holds: who imports whom, third parties by folder, sizes, one test file a pass."""

import ast
import graphlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {
    "ir": set(),
    "passes": {"ir"},
    "codegen": {"ir"},
    "runtime": {"ir.plan", "ir.launches"},
    "compiler": {"ir", "passes", "codegen", "runtime"},
    "ferrule": {"ir.target", "compiler", "runtime"},
}
SYMBOLS = {"sympy", "networkx"}
ARRAYS = {"numpy", "ml_dtypes"}
SERVING = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "llguidance"}
SERVING |= {"httptools"}
# The longest path that begins a file's name decides what it may import beside the standard library.
THIRD_PARTIES = {
    "ir/": SYMBOLS,
    "ir/plan.py": set(),
    "ir/launches.py": set(),
    "passes/": SYMBOLS | {"numpy"},
    "codegen/": SYMBOLS | ARRAYS,
    "codegen/tvm/": SYMBOLS | ARRAYS | {"tvm", "tvm_ffi"},
    "codegen/triton/": SYMBOLS | ARRAYS | {"triton"},
    "runtime/": ARRAYS | {"tvm_ffi", "tokenizers", "jinja2", "safetensors", "xxhash"},
    "runtime/server/": ARRAYS | SERVING | {"tokenizers", "jinja2"},
    "runtime/cuda/": ARRAYS | {"torch", "tvm_ffi"},
    "runtime/distributed/": ARRAYS | {"torch", "ray"},
    "ferrule/": set(),
}
MOST_LINES, MOST_FUNCTION_LINES = 500, 60


class Import(NamedTuple):
    """One imported module: dotted, with `ferrule` in front where it is ours."""

    module: str
    line: int
    relative: bool
    top: bool


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_of(path: Path) -> list[str]:
    """The dotted package that a relative import in this file starts from."""
    folders = list(path.relative_to(ROOT).parts[:-1])
    return folders if folders[0] == "ferrule" else ["ferrule", *folders]


def module_of(path: Path) -> str:
    return ".".join(package_of(path) + ([] if path.stem == "__init__" else [path.stem]))


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, wherever it stands; `from . import x` counts as `x`."""
    top = set(map(id, tree(path).body))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, False, id(node) in top)
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [a.name for a in node.names] if node.level and _is_package(base) else [""]
            for name in names:
                module = ".".join([*base, name] if name and _exists([*base, name]) else base)
                yield Import(module, node.lineno, node.level > 0, id(node) in top)


def _is_package(parts: list[str]) -> bool:
    return (ROOT.joinpath(*parts[1:])).is_dir()


def _exists(parts: list[str]) -> bool:
    at = ROOT.joinpath(*parts[1:])
    return at.is_dir() or at.with_suffix(".py").is_file()


def may_import(layer: str, module: str) -> bool:
    """Whether a file of one layer may import a module of ours, named without `ferrule.`."""
    allowed = LAYERS[layer] | {layer}
    return any(module == name or module.startswith(name + ".") for name in allowed)


def test_layers_import_only_what_lies_below_them():
    faults = [
        f"{place(path)}:{found.line} imports {found.module}"
        for path in sources(*LAYERS)
        for found in imports(path)
        if found.relative
        and not may_import(path.relative_to(ROOT).parts[0], found.module.partition(".")[2])
    ]
    assert not faults, "\n".join(faults)


def test_third_parties_stay_in_their_folders():
    faults = []
    for path in sources(*LAYERS):
        rules = [start for start in THIRD_PARTIES if place(path).startswith(start)]
        if not rules:
            continue
        allowed = THIRD_PARTIES[max(rules, key=len)]
        known = allowed | sys.stdlib_module_names | set(LAYERS)
        faults += [
            f"{place(path)}:{found.line} imports {found.module}, not one of {sorted(allowed)}"
            for found in imports(path)
            if not found.relative and found.module.partition(".")[0] not in known
        ]
    assert not faults, "\n".join(faults)


def test_the_package_imports_itself_relatively():
    faults = [
        f"{place(path)}:{found.line} imports {found.module} absolutely"
        for path in sources(*LAYERS)
        for found in imports(path)
        if not found.relative and found.module.partition(".")[0] in LAYERS
    ]
    assert not faults, "\n".join(faults)


def test_no_two_files_import_each_other():
    graph = {
        module_of(path): {i.module for i in imports(path) if i.relative and i.top}
        - {module_of(path)}
        for path in sources(*LAYERS)
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_every_source_folder_is_a_package_and_no_test_folder_is():
    missing = {
        place(p.parent) for p in sources(*LAYERS) if not (p.parent / "__init__.py").is_file()
    }
    assert not missing, f"folders without __init__.py, left out of the wheel: {sorted(missing)}"
    stray = [place(p) for p in sources("tests") if p.name == "__init__.py"]
    assert not stray, f"tests are imported by path, these would shadow: {stray}"


def test_every_pass_has_a_test():
    names = [path.stem for path in sources("passes") if declares_pass(path)]
    missing = [n for n in names if not (ROOT / f"tests/passes/test_{n}.py").is_file()]
    assert not missing, f"passes without a test: {missing}"


def declares_pass(path: Path) -> bool:
    """Whether a class of the file gives its `name` a value: a pass, not the protocol."""
    return any(
        isinstance(line, ast.AnnAssign) and line.value and ast.unparse(line.target) == "name"
        for node in tree(path).body
        if isinstance(node, ast.ClassDef)
        for line in node.body
    )


def test_files_and_functions_stay_short():
    faults = []
    for path in sources(*LAYERS, "tests", "benchmarks", "examples"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            faults.append(f"{place(path)}: {lines} lines, {MOST_LINES} at most")
        faults += long_functions(path)
    assert not faults, "\n".join(faults)


def long_functions(path: Path) -> Iterator[str]:
    """Functions over the limit; a kernel template is one function by nature and is exempt."""
    if "templates" in path.parts:
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_FUNCTION_LINES:
                yield f"{place(path)}:{node.lineno} {node.name}: {length} lines"
