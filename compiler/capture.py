"""Capture: a PyTorch module becomes an exported program with symbolic batch and length.

A causal language model is a module whose forward maps token ids [B, S] to logits [B, S, V], bare or
as `.logits`. Nothing
here looks at class or parameter names. Any other module is captured with the arguments that it is
called with.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from .checkpoint import LiveWeights, Weights
from .chosen_rows import all_rows_for_chosen
from .conditions import BecameNumberError, noted_numbers, tried_conditions
from .decisions import Splits, decided_by_length
from .errors import CompileError
from .functional import functional
from .grad_mode import WithoutGradients
from .helped import helped
from .last_rows import all_rows_for_last
from .plain_forms import plain_forms, token_argument
from .refusals import A_NUMBER, in_plain_words
from .results import NOT_LOGITS, logits_in, vocabularies_of
from .sorted_rows import rows_as_they_are
from .sources import model_line
from .strides import WithoutStrides
from .trace_costs import seldom_collected, seldom_written, short_stacks, without_known_results

# Sizes that the trace runs with: no other dim of a model's source is likely to be confused with
# them, because symbolic
# dims are only ever compared with other symbolic dims, and 0 and 1 are special to the tracer.
BATCH, LENGTH = 3, 19
MOST_BATCH = 1024
DEFAULT_CONTEXT = 2048
IDS = "ids"  # what LogitsOf calls its argument


@dataclass(frozen=True, eq=False)
class Captured:
    """An exported program, and what the importer needs to know about it.

    `dims` maps the tracer's symbols to our dim names, `bounds` gives each dim's (lowest, highest),
    `prefix` is the path that
    the wrapper put before every name of the model's state dict, `tree` rebuilds the module's own
    result from flat outputs. `imported` is what the import gives, where it was done already;
    `bounded_by` says what in the model bounds the length, where something does.
    """

    program: ExportedProgram
    name: str
    dims: Mapping[str, str]
    bounds: Mapping[str, tuple[int, int]]
    weights: Weights
    prefix: str = ""
    input_names: tuple[str, ...] = ()
    tree: Any = None
    is_language_model: bool = False
    imported: Any = None
    bounded_by: str = ""


def capture(
    model: nn.Module,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    max_context: int | None = None,
    weights: Weights | None = None,
    name: str = "model",
) -> Captured:
    """The model as an exported program; `weights` replaces the model's own values where those are
    not in memory.

    Without `args` and `kwargs` the module is a causal language model, captured for any batch and
    any length up to
    `max_context`, or else up to the model's own limit. With them it is any module, captured at the
    shapes given, except for
    the dims that `dynamic_shapes` (as in torch.export) leaves open. Raises CompileError where the
    model does not export.
    """
    weights = LiveWeights(model) if weights is None else weights
    with prepared(model), helped(model):
        if args is None and kwargs is None:
            try:
                return _capture_language_model(model, max_context, weights, name)
            except CompileError as refusal:
                raise CompileError(_reason(model, refusal)) from refusal
        return _capture_module(
            model, tuple(args or ()), dict(kwargs or {}), dynamic_shapes, weights, name
        )


# -- language models


def _reason(model: nn.Module, refusal: CompileError) -> str:
    """Why a language model is refused: what running it shows, or what the tracer says of it."""
    from .probed import no_language_model

    said = in_plain_words(str(refusal))
    return no_language_model(model, said) or said


class OpenSizes:
    """The tracer's symbols for the sizes of token ids [B, S]."""

    def __init__(self) -> None:
        self.symbols: tuple[str, ...] = ()

    def note(self, ids: torch.Tensor) -> None:
        """Note the symbols of a trace's token ids."""
        self.symbols = tuple(str(size) for size in ids.shape)

    def named(self, text: str) -> str:
        """A text with B and S in place of the symbols."""
        for symbol, name in zip(self.symbols, "BS", strict=False):
            text = re.sub(rf"\b{symbol}\b", name, text) if not symbol.isdecimal() else text
        return text


class LogitsOf(nn.Module):
    """A language model reduced to token ids in, logits out."""

    def __init__(self, model: nn.Module, longest: int, end: int = 1) -> None:
        super().__init__()
        self.model, self.ends, self.end = model, (1, longest), end
        self.strides = True  # whether how parts of values lie in memory is looked at
        self.splits, self.by_name = Splits(), token_argument(model)
        self.sizes, self.vocabularies = OpenSizes(), vocabularies_of(model)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, S, V] of ids [B, S]; outside a capture [B, 1, V] where the model gives the
        last token's alone.
        """
        if not torch.compiler.is_exporting():
            return self._logits(ids)
        self.sizes.note(ids)
        # What the length alone decides is asked first.
        decided = decided_by_length(ids, self.ends, self.end, self.splits)
        strides = nullcontext() if self.strides else WithoutStrides()
        with WithoutGradients(), rows_as_they_are(), all_rows_for_chosen(), decided, strides:
            logits = self._logits(ids)
            if is_last_alone(logits, ids):
                with all_rows_for_last(ids):
                    logits = self._logits(ids)
                if is_last_alone(logits, ids):
                    raise CompileError(NOT_LOGITS.format(given=list(logits.shape), ids=ids.shape))
        return logits

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        result = self.model(**{self.by_name: ids}) if self.by_name else self.model(ids)
        return logits_in(result, ids, self.vocabularies)


def is_last_alone(logits: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether logits are of the last token alone, of ids that are more."""
    return isinstance(logits.shape[1], int) and logits.shape[1] == 1 and bool(ids.shape[1] != 1)


def _capture_language_model(
    model: nn.Module, max_context: int | None, weights: Weights, name: str
) -> Captured:
    if max_context is not None and max_context < 2:
        raise CompileError(f"max_context is at least 2 tokens, not {max_context}")
    token_argument(model)
    limit = max_context or own_limit(model) or DEFAULT_CONTEXT
    # They build on this module.
    from .any_length import export_any_length
    from .early_refusals import EarlyRefusalError
    from .fixed_lengths import capture_by_lengths, check_long, chunk_in
    from .import_aten import import_captured
    from .limits import within_tables
    from .longer_lengths import capture_from_traced, capture_longer

    def by_lengths(refusal: CompileError) -> Captured:
        joined = capture_by_lengths(model, limit, weights, name, refusal)
        joined = within_tables(joined, max_context)
        check_long(model, joined)
        return joined

    try:
        try:
            program, (low, high), why = export_any_length(model, limit, max_context)
        except EarlyRefusalError:
            longer = capture_from_traced(model, limit, weights, name)
            if longer is not None:
                return within_tables(longer, max_context)
            program, (low, high), why = export_any_length(model, limit, max_context, early=False)
    except CompileError as refusal:
        longer = capture_longer(model, limit, weights, name, refusal)
        return by_lengths(refusal) if longer is None else within_tables(longer, max_context)
    symbols = input_symbols(program)
    if [isinstance(s, str) for s in symbols] != [True, True]:
        raise CompileError(
            f"the model's forward works for one batch or length alone: [B, S] became {symbols}; "
            "something in it turns the batch or the length into a fixed number"
        )
    dims = {str(symbols[0]): "B", str(symbols[1]): "S"}
    captured = of_logits(program, dims, {"S": (low, high)}, weights, name)
    captured = replace(captured, bounded_by=why)
    try:
        captured = replace(captured, imported=import_captured(captured))
    except CompileError as refusal:
        if chunk_in(str(refusal)):  # its sizes are those of chunks
            return by_lengths(refusal)
    return within_tables(captured, max_context)


def of_logits(
    program: ExportedProgram,
    dims: Mapping[str, str],
    bounds: Mapping[str, tuple[int, int]],
    weights: Weights,
    name: str,
) -> Captured:
    """The capture of a program that LogitsOf was exported to."""
    return Captured(
        program=program,
        name=name,
        dims=dims,
        bounds={"B": (1, MOST_BATCH), **bounds},
        weights=weights,
        prefix="model.",
        input_names=(IDS,),
        is_language_model=True,
    )


def own_limit(model: nn.Module) -> int | None:
    """The most positions that a model's config states, where it has one."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for field in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        value = getattr(config, field, None)
        if isinstance(value, int) and value > 1:
            return value
    return None


# -- any other module


def _capture_module(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    weights: Weights,
    name: str,
) -> Captured:
    program = export(model, args, kwargs, dynamic_shapes)
    dims = {}
    for number, symbol in enumerate(program.range_constraints):
        dims[str(symbol)] = f"D{number}"
    bounds = {
        dims[str(s)]: (max(1, int(v.lower)), int(v.upper) if v.upper < 1 << 31 else 1 << 31)
        for s, v in program.range_constraints.items()
    }
    return Captured(
        program=program,
        name=name,
        dims=dims,
        bounds=bounds,
        weights=weights,
        input_names=tuple(str(name) for name in program.graph_signature.user_inputs),
        tree=program.call_spec.out_spec,
    )


# -- what both share


def export(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    *,
    deferred: bool = False,
    open_sizes: bool = False,
) -> ExportedProgram:
    """The functional program of a module; CompileError with the model's line where it has none.

    `deferred`: with conditions on sizes as assertions in it, for the caller to prove. `open_sizes`:
    refused at once where a size of the token ids becomes a number.
    """
    numbers: list[str] = []
    try:
        with (
            torch.no_grad(),
            without_known_results(module),
            seldom_collected(),
            seldom_written(),
            short_stacks(),
            tried_conditions(),
            noted_numbers(refused=IDS if open_sizes else "") as numbers,
            _without_refused_graph(),
        ):
            program = torch.export.export(
                module,
                args,
                kwargs,
                strict=False,
                dynamic_shapes=dynamic_shapes,
                prefer_deferred_runtime_asserts_over_guards=deferred,
            )
            return functional(program)
    except CompileError:
        raise
    except BecameNumberError as error:
        reason = f"the model is for any such size, and its code {A_NUMBER} ({error})"
        raise CompileError(f"{_name(module)} does not export, at {numbers[0]}: {reason}") from None
    except Exception as error:
        raise CompileError(_refusal(module, error, numbers)) from error


@contextmanager
def _without_refused_graph() -> Iterator[None]:
    """torch prints the whole graph of what it refuses to standard error, thousands of lines; the
    refusal itself says what and where.
    """
    with redirect_stderr(StringIO()) as printed:
        yield
    sys.stderr.write(printed.getvalue())


def _refusal(module: nn.Module, error: Exception, numbers: Sequence[str]) -> str:
    where = model_line(error)
    if not where and A_NUMBER in str(error) and numbers:
        where = numbers[0]
    reason = str(error).strip().split("\n\n")[0]
    if isinstance(module, LogitsOf) and type(error) is RuntimeError:
        reason = module.sizes.named(reason)
    return (
        f"{_name(module)} does not export"
        + (f", at {where}" if where else "")
        + f": {type(error).__name__}: {reason}"
        + (_GIVEN if isinstance(module, LogitsOf) and type(error) is RuntimeError else "")
    )


def _name(module: nn.Module) -> str:
    return type(module.model if isinstance(module, LogitsOf) else module).__name__


# Sizes that do not fit: a model may want several rows a sequence, or values beside the ids.
_GIVEN = " (it was given token ids [B, S], one row a sequence)"


def input_symbols(program: ExportedProgram) -> list[str | int]:
    """Each dim of the first user input: a symbol's name, or the number that it was fixed to."""
    wanted = next(iter(program.graph_signature.user_inputs))
    node = next(n for n in program.graph.nodes if n.name == wanted)
    return [int(d) if isinstance(d, int) else str(d.node.expr) for d in node.meta["val"].shape]


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """The model in the state that it is captured in, and put back afterwards.

    Evaluation mode; caches off; attention through SDPA where the model has it, expert layers in the
    form that is plain
    tensor algebra (batched_mm), both exact; parameters that are on the meta device stand as fake
    CPU tensors.
    """
    with ExitStack() as undo:
        _evaluation_mode(model, undo)
        config = getattr(model, "config", None)
        if config is not None and getattr(config, "use_cache", False):
            undo.callback(setattr, config, "use_cache", config.use_cache)
            config.use_cache = False
        plain_forms(model, undo)
        _fake_parameters(model, undo)
        yield


def _evaluation_mode(model: nn.Module, undo: ExitStack) -> None:
    for module in [m for m in model.modules() if m.training]:
        undo.callback(setattr, module, "training", True)
        module.training = False


def _fake_parameters(model: nn.Module, undo: ExitStack) -> None:
    """Stand a fake CPU tensor in for every parameter on the meta device, the same one for tied
    parameters.
    """
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None or old.device.type != "meta":
                continue
            if id(old) not in fakes:
                fake = FakeTensor(mode, old.detach(), torch.device("cpu"))
                fakes[id(old)] = nn.Parameter(fake, requires_grad=False)
            undo.callback(module._parameters.__setitem__, name, old)
            module._parameters[name] = fakes[id(old)]
