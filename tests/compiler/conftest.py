"""The embedded model, compiled once for all tests of a worker."""

from pathlib import Path

import pytest
from ferrule.compiler.build import Options, compile_to

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the embedded model."""
    place = tmp_path_factory.mktemp("tiny") / "artifact"
    compile_to(TINY, place, Options(max_context=128, max_batch=4, chunk=64, progress=False))
    return place
