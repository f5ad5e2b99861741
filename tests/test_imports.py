"""What an import costs: the face and the runtime load no compiler library."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "sympy", "networkx", "triton", "tvm")
REPORT = f"print(*[m for m in {HEAVY!r} if sys.modules.get(m)], file=sys.stderr)"
# tvm_ffi looks for torch and does without it: here, as on a serving machine, there is none to find.
ABSENT = f"sys.modules.update(dict.fromkeys({HEAVY!r}))"


def loaded(code: str) -> list[str]:
    """Which of the heavy modules a fresh interpreter holds after running the code."""
    done = fresh(f"import sys\ntry:\n    {code}\nfinally:\n    {REPORT}")
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


def fresh(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


def runtime_modules() -> list[str]:
    """Every module of the runtime that a CPU artifact may need."""
    found = []
    for path in sorted((ROOT / "runtime").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] not in ("cuda", "distributed", "server") and parts[-1] != "__init__":
            found.append(".".join(("ferrule", *parts)))
    return found


def test_the_face_loads_nothing_heavy():
    assert loaded("import ferrule") == []


def test_help_loads_nothing_heavy():
    code = "sys.argv = ['ferrule', '--help']; import ferrule.__main__ as m; m.main()"
    assert loaded(code) == []


def test_the_plan_loads_no_symbols():
    assert loaded("import ferrule.ir.plan; assert 'numpy' not in sys.modules") == []


@pytest.mark.parametrize("module", runtime_modules())
def test_the_runtime_needs_no_compiler(module: str):
    done = fresh(f"import sys; {ABSENT}; import {module}")
    assert done.returncode == 0, done.stderr


def test_every_public_name_has_a_home():
    import ferrule

    missing = [name for name in ferrule.__all__ if not hasattr(ferrule, name)]
    assert not missing


def test_an_unknown_name_is_refused_with_the_known_ones():
    import ferrule

    with pytest.raises(AttributeError, match=r"'Artefact'; it has Artifact"):
        _ = ferrule.Artefact  # pyright: ignore[reportAttributeAccessIssue]
