"""From an artifact to its first token on a GPU, with nothing imported that serving does not need:
`python -m benchmarks.gpu_first_token DIR ARCH`. Prints the seconds of each part as JSON.
"""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from ferrule.runtime.artifact import load  # noqa: E402
from ferrule.runtime.cuda.opening import open_device, open_executor  # noqa: E402
from ferrule.runtime.executor import Batch  # noqa: E402
from ferrule.runtime.pools import Pools  # noqa: E402


def main() -> None:
    """Open the artifact of the first argument on a device of the second, and run a short prompt."""
    place, arch = Path(sys.argv[1]), sys.argv[2]
    imported = time.perf_counter()
    opened = load(place, verify=False)
    device = open_device(arch)
    ready = time.perf_counter()
    runner = open_executor(place, opened.plan, opened.weights, device, Pools(64, 0))
    there = time.perf_counter()
    argmax, _ = runner.step(
        Batch(
            tokens=range(17, 25),
            positions=range(8),
            query_start=(0, 8),
            context_length=(8,),
            block_table=[[0]],
            slots=range(8),
            logit_rows=(7,),
            wants_logits=False,
        )
    )
    parts = {
        "import_seconds": imported - BEGIN, "device_seconds": ready - imported,
        "weights_seconds": there - ready, "step_seconds": time.perf_counter() - there,
    }  # fmt: skip
    print(json.dumps({**parts, "token": int(argmax[0])}))


if __name__ == "__main__":
    main()
