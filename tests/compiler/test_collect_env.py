"""What a report of a fault says of the machine."""

import json

from ferrule.compiler.cli import app
from typer.testing import CliRunner


def test_the_machine_and_its_packages_are_told():
    done = CliRunner().invoke(app, ["collect-env", "--json"])
    found = json.loads(done.output)
    assert found["cores"] >= 1 and found["available_memory_bytes"] > 1 << 20
    assert found["packages"]["numpy"] and found["packages"]["ferrule"]
    lines = CliRunner().invoke(app, ["collect-env"]).output.splitlines()
    assert any(line.split() == ["python", found["python"]] for line in lines)
