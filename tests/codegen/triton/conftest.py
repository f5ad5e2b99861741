"""One process that interprets, for all tests of templates."""

from collections.abc import Iterator

import pytest
from interpreted import Interpreter


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    process = Interpreter()
    yield process
    process.close()
