"""A checkpoint compiled by Ferrule.

    python -m benchmarks.conversion.to_artifact CHECKPOINT OUTPUT FORMAT TARGET ROOM SEQUENCES

The last line printed is the peak of memory in bytes.
"""

from __future__ import annotations

import sys

from ..workers.protocol import peak_bytes

QUANTIZE = {"bf16": None, "int8": "int8", "int4": "int4"}


def main() -> None:
    """Compile and save."""
    import ferrule

    checkpoint, output, form, target, room, sequences = sys.argv[1:]
    artifact = ferrule.compile(
        checkpoint,
        target=target,
        quantize=QUANTIZE[form],
        max_context=int(room),
        max_batch=int(sequences),
        parity=form != "int4",  # random weights do not bear it: every token is near a tie
        progress=False,
    )
    artifact.save(output)
    print(peak_bytes())


if __name__ == "__main__":
    main()
