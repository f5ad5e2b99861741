"""Every example runs, and says what it should."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUNS = {
    "compile_mlp.py": ([], "largest error"),
    "compile_your_own.py": ([], "[5, 17, 200] ->"),
    "demo.py": (["--tokens", "6"], "tokens/s"),
}


def test_every_example_is_run():
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name: str):
    arguments, wanted = RUNS[name]
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=EXAMPLES.parent)
    assert done.returncode == 0, done.stderr
    assert wanted in done.stdout
