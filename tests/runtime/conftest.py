"""Fixtures over the toys beside this file, which the tests import by name."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from toys import write_toy  # noqa: E402 (found by the path above)


@pytest.fixture(scope="session")
def toy_kernels(tmp_path_factory):
    if importlib.util.find_spec("tvm") is None:
        pytest.skip("building the toy kernels needs TVM's compiler")
    path = tmp_path_factory.mktemp("toy") / "kernels.so"
    subprocess.run([sys.executable, HERE / "build_toy.py", path], check=True, timeout=300)
    return path


@pytest.fixture
def toy(tmp_path, toy_kernels):
    return write_toy(tmp_path / "toy", toy_kernels)
