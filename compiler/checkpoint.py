"""Weights by name, read when they are asked for: from safetensors files, or from a module in
memory.

A `Weights` is a mapping from the names of a model's state dict to tensors. Looking a name up reads
it; `describe` answers
shape and dtype without reading. Nothing is kept: a model larger than memory streams through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import CompileError

Shape = tuple[int, ...]


class Weights(Mapping[str, torch.Tensor]):
    """Tensors by name. Complex ones stand as real tensors with a last axis of 2, as
    torch.view_as_real gives them.
    """

    unused: tuple[str, ...] = ()

    def describe(self, name: str) -> tuple[Shape, torch.dtype]:
        """Shape and dtype of a weight."""
        tensor = self[name]
        return tuple(tensor.shape), tensor.dtype

    def release(self) -> None:
        """Unmap the files behind the weights, whose pages count as memory; a look-up maps them
        again.
        """


class LiveWeights(Weights):
    """The parameters and buffers of a module in memory, tied ones under each of their names."""

    def __init__(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._tensors = parameters | dict(module.named_buffers(remove_duplicate=False))

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name].detach()
        return torch.view_as_real(tensor) if tensor.is_complex() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class OverlaidWeights(Weights):
    """Tensors laid over other weights: buffers and constants that the checkpoint does not hold."""

    def __init__(self, below: Weights, above: Mapping[str, torch.Tensor]) -> None:
        self.below, self.above, self.unused = below, dict(above), below.unused

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.above:
            return self.below[name]
        tensor = self.above[name].detach()
        return torch.view_as_real(tensor) if tensor.is_complex() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self.below), **dict.fromkeys(self.above)})

    def __len__(self) -> int:
        return len(set(self.below) | set(self.above))

    def describe(self, name: str) -> tuple[Shape, torch.dtype]:
        """Shape and dtype of a weight."""
        return super().describe(name) if name in self.above else self.below.describe(name)

    def release(self) -> None:
        """Unmap the files behind the weights below."""
        self.below.release()


class SafetensorsFiles:
    """The tensors of one or more safetensors files, memory-mapped, by the names in the files."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._home: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            for name in self._handle(file).keys():  # noqa: SIM118 - not a dict
                self._home[name] = file

    @classmethod
    def of_directory(cls, directory: Path) -> SafetensorsFiles:
        """The files of a Hugging Face directory: the index's shards, or every *.safetensors
        file.
        """
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            absent = [s for s in shards if not (directory / s).is_file()]
            if absent:
                raise CompileError(f"{index} names shards that are not there: {', '.join(absent)}")
            return cls(directory / s for s in shards)
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise CompileError(f"no *.safetensors file in {directory}")
        return cls(files)

    def _handle(self, file: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._open:
            try:
                self._open[file] = safe_open(str(file), framework="pt")
            except (SafetensorError, OSError) as error:
                raise CompileError(f"{file} is no readable safetensors file: {error}") from error
        return self._open[file]

    def names(self) -> tuple[str, ...]:
        """Every name in the files."""
        return tuple(self._home)

    def release(self) -> None:
        """Close the files: what was read and is no longer held leaves memory. They open when
        read.
        """
        self._open.clear()

    def read(self, name: str) -> torch.Tensor:
        """The tensor, mapped from its file."""
        return self._handle(self._home[name]).get_tensor(name)

    def describe(self, name: str) -> tuple[Shape, torch.dtype]:
        """Shape and dtype, from the file's header."""
        part = self._handle(self._home[name]).get_slice(name)
        return tuple(part.get_shape()), _SAFETENSORS_DTYPES[part.get_dtype()]


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class _Recipe:
    """How one weight of the model comes out of the files: source names, and transformers'
    conversion where it has one.
    """

    sources: tuple[tuple[str, str], ...]  # (name in the files, the pattern that it matched)
    converter: Any = None
    target: str = ""


@dataclass
class _Plan:
    recipes: dict[str, _Recipe] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


class CheckpointWeights(Weights):
    """The weights of a model from safetensors files, renamed, merged and split as transformers does
    when it loads them.

    `model` may have its parameters on the meta device: only its names, shapes, dtypes and ties are
    used. Every missing or
    misshapen weight is named in one CompileError; names in the files that nothing takes are in
    `unused`.
    """

    def __init__(self, model: nn.Module, files: SafetensorsFiles) -> None:
        self._files = files
        self._wanted = dict(model.named_parameters(remove_duplicate=False))
        self._buffers = dict(model.named_buffers(remove_duplicate=False))
        plan = _plan(model, files, {**self._persistent(model), **self._wanted})
        self._recipes = plan.recipes
        self._tie(plan)
        self._model = model
        self.unused = tuple(n for n in plan.unexpected if not _ignorable(model, n))
        self._check()

    @staticmethod
    def _persistent(model: nn.Module) -> dict[str, torch.Tensor]:
        return {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}

    def _tie(self, plan: _Plan) -> None:
        """A weight that the files lack is read as one that it is tied to: the same parameter
        object.
        """
        groups: dict[int, list[str]] = {}
        for name, parameter in self._wanted.items():
            groups.setdefault(id(parameter), []).append(name)
        for names in groups.values():
            stored = [n for n in names if n in plan.recipes]
            for name in names if stored else ():
                self._recipes[name] = plan.recipes[stored[0]]

    def release(self) -> None:
        """Unmap the files."""
        self._files.release()

    def _check(self) -> None:
        stored = self._persistent(self._model)
        problems = [
            f"  {name}: missing; {_shape(p)} was wanted"
            for name, p in {**self._wanted, **stored}.items()
            if name not in self._recipes and not _may_be_missing(self._model, name)
        ]
        problems += [p for name in self._recipes if (p := self._misshapen(name))]
        if problems:
            extra = [
                f"  {name}: in the files, but the model has no such weight" for name in self.unused
            ]
            raise CompileError(
                f"{len(problems)} weights do not fit the model:\n" + "\n".join(problems + extra)
            )

    def _misshapen(self, name: str) -> str | None:
        recipe = self._recipes[name]
        target = self._target(name)
        if recipe.converter is None:
            given = self._files.describe(recipe.sources[0][0])[0]
        else:
            try:
                given = tuple(self._convert(name, recipe, self._hollow).shape)
            except NotImplementedError:
                return None  # a conversion that needs values speaks up when it has them
            except CompileError as error:
                return f"  {error}"
        if given == tuple(target.shape):
            return None
        return f"  {name}: {list(given)} given, {_shape(target)} wanted"

    def _hollow(self, source: str) -> torch.Tensor:
        """A stored tensor's shape and dtype on the meta device."""
        shape, dtype = self._files.describe(source)
        return torch.empty(shape, dtype=dtype, device="meta")

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._recipes:
            if name in self._buffers:
                tensor = self._buffers[name].detach()
                return torch.view_as_real(tensor) if tensor.is_complex() else tensor
            raise KeyError(name)
        recipe = self._recipes[name]
        if recipe.converter is None:
            tensor = self._files.read(recipe.sources[0][0])
        else:
            tensor = self._convert(name, recipe, self._files.read)
        return tensor.to(self._target(name).dtype)

    def _convert(
        self, name: str, recipe: _Recipe, read: Callable[[str], torch.Tensor]
    ) -> torch.Tensor:
        converter = deepcopy(recipe.converter)
        for source, pattern in recipe.sources:
            converter.add_tensor(recipe.target, source, pattern, read(source))
        try:
            made = converter.convert(recipe.target, model=self._model, config=self._model.config)
            tensor = made[name]
        except NotImplementedError:
            raise
        except Exception as error:
            sources = ", ".join(s for s, _ in recipe.sources)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise CompileError(f"{name} cannot be made from {sources}: {reason}") from error
        return tensor[0] if isinstance(tensor, list) else tensor

    def _target(self, name: str) -> torch.Tensor:
        return self._wanted[name] if name in self._wanted else self._buffers[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._recipes), **dict.fromkeys(self._buffers)})

    def __len__(self) -> int:
        return len(set(self._recipes) | set(self._buffers))

    def describe(self, name: str) -> tuple[Shape, torch.dtype]:
        """Shape and dtype of a weight, without reading it."""
        target = self._target(name)
        if target.is_complex():
            return (*target.shape, 2), target.real.dtype
        return tuple(target.shape), target.dtype


def _shape(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))


def _ignorable(model: nn.Module, name: str) -> bool:
    """Whether the model's class says that a checkpoint may hold a weight that it has no use for."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(p, name) for p in patterns)


def _may_be_missing(model: nn.Module, name: str) -> bool:
    """Whether the model's class says that a checkpoint need not hold a weight."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(p, name) for p in patterns)


def _plan(model: nn.Module, files: SafetensorsFiles, wanted: dict[str, torch.Tensor]) -> _Plan:
    """Which names in the files make which weight: through transformers' own conversion mapping
    where the model has one.
    """
    plan = _Plan()
    if not hasattr(model, "base_model_prefix"):
        for name in files.names():
            if name in wanted:
                plan.recipes[name] = _Recipe(((name, name),))
            else:
                plan.unexpected.append(name)
        return plan
    _plan_as_transformers(model, files, wanted, plan)
    return plan


def _plan_as_transformers(
    model: Any, files: SafetensorsFiles, wanted: dict[str, torch.Tensor], plan: _Plan
) -> None:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    gathered: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    prefix = model.base_model_prefix
    for name in sorted(files.names(), key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if renamed not in wanted and name in wanted:
            renamed, pattern = rename_source_key(name, [], [], prefix, wanted)
        if renamed not in wanted:
            plan.unexpected.append(name)
        elif pattern is None:
            plan.recipes[renamed] = _Recipe(((name, name),))
        else:
            converter, sources = gathered.setdefault(renamed, (by_pattern[pattern], []))
            sources.append((name, pattern))
    for target, (converter, sources) in gathered.items():
        recipe = _Recipe(tuple(sources), converter, target)
        for made in _targets(converter, target, wanted):
            plan.recipes[made] = recipe


def _targets(converter: Any, target: str, wanted: Mapping[str, torch.Tensor]) -> list[str]:
    """Every weight that one conversion makes; `target` is the first of them."""
    first, *others = converter.target_patterns
    names = [target.replace(first, other) for other in others if first in target]
    return [target, *(n for n in names if n in wanted)]
