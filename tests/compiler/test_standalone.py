"""An artifact is served where nothing but the runtime's dependencies is installed: no compiler,
no torch, no TVM.
"""

import json
import re
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from ferrule.runtime.artifact import load
from ferrule.runtime.sampling import SamplingParams
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
# The parallel runtime library lies in the artifact: the package that it comes from is not needed.
LEFT_OUT = {"apache-tvm"}
ABSENT = ("torch", "transformers", "sympy", "networkx", "triton", "tvm", "scipy")
SERVE = """
import importlib.util, json, sys
absent = [name for name in %r if importlib.util.find_spec(name) is None]
import ferrule
artifact = ferrule.load(sys.argv[1])
params = ferrule.SamplingParams(temperature=0.0, max_tokens=12)
found = artifact.generate(["def add(a, b):", "import"], params)
texts, tokens = [c.text for c in found], [c.token_ids for c in found]
print(json.dumps({"absent": absent, "tokens": tokens, "texts": texts}))
"""


def needed(name: str, found: set[str] | None = None) -> set[str]:
    """A distribution and all that it requires."""
    found = set() if found is None else found
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key not in found and key not in LEFT_OUT:
        found.add(key)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed(requirement.name, found)
    return found


def top_level(name: str) -> set[Path]:
    """The files and folders that a distribution puts into site-packages."""
    installed = distribution(name)
    tops = {file.parts[0] for file in installed.files or () if file.parts[0] != ".."}
    return {Path(str(installed.locate_file(top))) for top in tops if top != "__pycache__"}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the runtime's dependencies alone."""
    home = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(home, symlinks=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names: set[str] = set()
    for text in settings["project"]["dependencies"]:
        needed(Requirement(text).name, names)
    for path in {p for name in names for p in top_level(name)}:
        (packages / path.name).symlink_to(path)
    (packages / "ferrule.pth").write_text(f"{ROOT}\n")
    return home / "bin/python"


def bare(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)


def test_an_artifact_generates_without_a_compiler(bare_python: Path, tiny: Path):
    done = bare(bare_python, "-c", SERVE % (ABSENT,), tiny)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["absent"] == list(ABSENT)
    params = SamplingParams(temperature=0.0, max_tokens=12)
    wanted = load(tiny).generate(["def add(a, b):", "import"], params)
    assert found["tokens"] == [list(c.token_ids) for c in wanted]
    assert found["texts"] == [c.text for c in wanted]


def test_the_command_line_serves_without_a_compiler(bare_python: Path, tiny: Path):
    done = bare(bare_python, "-m", "ferrule", "run", tiny, "import", "--max-tokens", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("import")
    done = bare(bare_python, "-m", "ferrule", "plan", tiny)
    assert done.returncode == 0, done.stderr
    assert "KV cache" in done.stdout
    done = bare(bare_python, "-m", "ferrule", "compile", "x", "-o", "/tmp/never")
    assert done.returncode == 1
    assert "torch" in done.stderr
    assert "ferrule[cpu]" in done.stderr
