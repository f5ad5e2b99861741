"""A checkpoint as a model of OpenVINO, by its own exporter.

    python -m benchmarks.conversion.to_openvino CHECKPOINT OUTPUT bf16|int8|int4

The formats are float16 constants (multiplied in bfloat16 where the machine can), int8 with a scale
for each row, and int4 in groups of 32; both are symmetric and hold for embeddings and head too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

OPTIONS = {
    "bf16": ("--weight-format", "fp16"),
    "int8": ("--weight-format", "int8", "--sym"),
    "int4": (
        *("--weight-format", "int4", "--sym", "--group-size", "32"),
        *("--ratio", "1.0", "--all-layers"),
    ),
}


def main() -> None:
    """Run the exporter that lies beside this interpreter."""
    checkpoint, output, form = sys.argv[1:]
    exporter = Path(sys.executable).parent / "optimum-cli"
    task = ("--task", "text-generation-with-past")
    command = [exporter, "export", "openvino", "-m", checkpoint, *task, *OPTIONS[form], output]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
