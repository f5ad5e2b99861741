"""`ferrule explain`: every kernel of a step, what it does, where in the model it came from, what it
moves and computes, and how near it comes to what the machine allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..ir.errors import IRError
from ..ir.plan import Plan
from ..ir.target import Target
from ..runtime.costs import Dims, operations_of, sizes_of, traffic_of
from ..runtime.manifest import read_manifest
from .devices import USUAL, binaries_of, device_named
from .hardware import Hardware, hardware, recorded, records_path, remeasured
from .roofline import Explanation, KernelLine, StepLines
from .step_times import Of, step_times

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact

CONTEXT = 512  # tokens of a sequence where none are asked for and limits allow
_NUMBER = re.compile(r"\.\d+(?=[. ])")


@dataclass(frozen=True)
class Load:
    """The steps to explain: so many sequences of `context` tokens, this step's among them.

    `tokens` are those of a mixed step, of all sequences together; a decode step has one of each.
    None: a context of CONTEXT tokens or what the limits allow, all of it in one mixed step.
    """

    tokens: int | None = None
    sequences: int = 1
    context: int | None = None


def explain_artifact(
    folder: Path,
    *,
    entry: str | None = None,
    measure: bool = True,
    load: Load = Load(),
    device: str | None = None,
) -> Explanation:
    """The kernels of an artifact's entries; those of a GPU are held against a device by its name,
    not measured.
    """
    from ..runtime import artifact

    target = read_manifest(folder)["target"]
    if target["kind"] == "cpu":
        if device is not None:
            raise IRError(f"device {device!r}: the artifact is for a CPU, whose rates are measured")
        return explain(artifact.load(folder), entry=entry, measure=measure, load=load)
    machine = device_named(device, str(target["arch"]))
    return explain(artifact.Artifact(folder), entry=entry, measure=False, load=load, on=machine)


def explain(
    artifact: Artifact,
    *,
    entry: str | None = None,
    measure: bool = True,
    load: Load = Load(),
    on: Hardware | None = None,
    of: Of = median,
) -> Explanation:
    """The kernels of the entries of an opened artifact; with `measure`, timed in warm steps beside
    the rates of this machine, which are measured where no record has them. Without, beside those
    of the machine `on`, where one is given. A call's time is `of` those of several steps.
    """
    entries = artifact.plan.entries
    if entry is not None and entry not in entries:
        raise IRError(f"no entry {entry!r}; the artifact has {', '.join(entries)}")
    machine = hardware(built_for(artifact.manifest), records_path()) if measure else on
    steps = []
    for name in entries if entry is None else [entry]:
        dims = step_dims(artifact.plan, name, load)
        seconds = step_times(artifact, name, dims, of) if measure else None
        lines = _lines(artifact.plan, artifact.manifest, name, dims, seconds)
        steps.append(StepLines(name, dims, tuple(line.on(machine) for line in lines)))
    name = str(artifact.manifest.get("model", artifact.path))
    return Explanation(name, tuple(steps), machine, binaries_of(artifact.path))


def probe_machine(folder: Path) -> Hardware:
    """Measure this machine for an artifact's target, and record it, whether it was or not."""
    return remeasured(built_for(read_manifest(folder)), records_path())


def known_machine(manifest: Mapping[str, Any]) -> Hardware | None:
    """This machine's rates for an artifact's target, where somebody measured them before; for a
    GPU those that its maker states of the usual device of its architecture.
    """
    target = manifest["target"]
    if target["kind"] != "cpu":
        return device_named(None, str(target["arch"])) if target["arch"] in USUAL else None
    return recorded(built_for(manifest), records_path())


def built_for(manifest: Mapping[str, Any]) -> Target:
    """The artifact's target with this machine's cores and caches."""
    target, here = manifest["target"], Target.parse("cpu")
    return replace(here, arch=target["arch"], features=frozenset(target["features"]))


def step_dims(plan: Plan, entry: str, load: Load) -> dict[str, int]:
    """The sizes of a step; raises IRError where the artifact's limits do not allow it.

    Beside the plan's dims: C, the blocks of all sequences, Z, their recurrent states where the
    model has such, and L, the tokens of one.
    """
    if "decode" not in plan.entries:
        return {name: high for name, (_, high) in plan.dims.items()}
    limits = plan.limits
    given = "max_context" in limits
    longest = limits["max_context"] if given else plan.dims["M"][1] * plan.block
    most, count = plan.dims["T"][1], load.sequences
    asked = min(CONTEXT, longest) if load.context is None else load.context
    context = _within("context", asked, longest)
    _within("sequences", count, min(plan.limits.get("max_batch", most), most))
    whole = count if entry == "decode" else count * min(context, most // count)
    tokens = whole if entry == "decode" or load.tokens is None else load.tokens
    _within("tokens", tokens, min(most, count * context))
    if tokens % count:
        raise IRError(f"{tokens} tokens of {count} sequences: wanted as many of each")
    blocks = -(-context // plan.block)
    widest = plan.dims.get("M", (1, blocks))[1]
    width = max(blocks, min(1 << (blocks - 1).bit_length(), widest))
    sizes = {"T": tokens, "N": count, "R": count, "M": width, "C": count * blocks}
    states = {"Z": count} if plan.state_bytes else {}
    return {**sizes, **states, "L": context}


def _within(name: str, value: int, most: int) -> int:
    if not 1 <= value <= most:
        raise IRError(f"{name} = {value}: wanted 1 to {most}, as the artifact's limits allow")
    return value


def _lines(
    plan: Plan, manifest: Mapping[str, Any], entry: str, dims: Dims, seconds: list[float] | None
) -> Iterator[KernelLine]:
    kernels = manifest.get("report", {}).get("kernels", {})
    found: dict[str, KernelLine] = {}
    for at, call in enumerate(plan.entries[entry].calls):
        known = kernels.get(call.kernel, {})
        template = str(known.get("template", call.label))
        line = found.get(call.kernel) or KernelLine(call.kernel, template, call.ops, call.origin)
        sizes = sizes_of(call, dims)
        found[call.kernel] = replace(
            line,
            count=line.count + 1,
            traffic=line.traffic + traffic_of(known, call, sizes),
            operations=_added(line.operations or {}, operations_of(known, sizes)),
            seconds=None if seconds is None else (line.seconds or 0.0) + seconds[at],
        )
    return (replace(line, origin=_of_all(line)) for line in found.values())


def _of_all(line: KernelLine) -> str:
    """Where the calls came from: those of several layers are named `layers.*`."""
    return line.origin if line.count == 1 else _NUMBER.sub(".*", line.origin)


def _added(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return {d: before.get(d, 0) + now.get(d, 0) for d in (*before, *now)}
