"""Opens a Hugging Face checkpoint: the model on the meta device, its weights by name, its files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from .checkpoint import CheckpointWeights, LiveWeights, SafetensorsFiles, Weights
from .errors import CompileError

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
DTYPE_WORDS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(frozen=True, eq=False)
class Opened:
    """A model to compile, its weights, the folder that its tokenizer lies in (None in memory),
    its name.
    """

    model: nn.Module
    weights: Weights
    folder: Path | None
    name: str
    dtype: str


def open_model(model: nn.Module | str | Path, dtype: str = "auto") -> Opened:
    """A module as it is, or the checkpoint in a directory or under a name on the Hugging Face
    Hub, read as it is needed.

    Raises CompileError where there is no such checkpoint, or its weights do not fit its
    configuration.
    """
    check_dtype(dtype)
    if isinstance(model, nn.Module):
        return _in_memory(model, dtype)
    if not isinstance(model, str | Path):
        raise CompileError(f"a model is a torch.nn.Module, a directory or a name, given {model!r}")
    folder = checkpoint_folder(model)
    made = skeleton(folder, dtype)
    weights = CheckpointWeights(made, SafetensorsFiles.of_directory(folder))
    return Opened(made, weights, folder, str(model), float_dtype(made))


def check_dtype(dtype: str) -> None:
    """Raise CompileError where there is no such dtype."""
    if dtype != "auto" and dtype not in DTYPES:
        raise CompileError(f"no dtype {dtype!r}; known: auto, {', '.join(DTYPES)}")


def _in_memory(model: nn.Module, dtype: str) -> Opened:
    _is_plain(model)
    if dtype != "auto":
        # The caller's model stays as it is.
        model = copied(model).to(DTYPES[dtype])
    name = getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__
    return Opened(model, LiveWeights(model), None, name, float_dtype(model))


def copied(model: nn.Module) -> nn.Module:
    """A copy of a model; tensors that its modules made and keep, as torch's weight_norm does, are
    copied as values.
    """
    held = (v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor))
    return deepcopy(model, {id(v): v.detach().clone() for v in held if not v.is_leaf})


def _is_plain(model: nn.Module) -> None:
    """Raise CompileError where a model in memory is none that can be captured."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CompileError(
            f"{type(model).__name__} is a TorchScript module, whose code is no Python that "
            "torch.export could follow; give the torch.nn.Module that it was made of"
        )
    tensors = (*model.named_parameters(), *model.named_buffers())
    empty = [n for n, x in tensors if is_lazy(x)]
    if empty:
        raise CompileError(
            f"{', '.join(empty)} of {type(model).__name__} have no size yet: they are those of "
            "lazy modules; run the model once on some token ids"
        )


def graph_name(name: str) -> str:
    """The last part of a model's name, in the letters that a graph's name may have."""
    return re.sub(r"[^\w.\-]", "-", Path(name).name) or "model"


def padding_of(model: nn.Module) -> set[int]:
    """The tokens that a model says are padding: its config, or a table with a row for padding."""
    said = {getattr(getattr(model, "config", None), "pad_token_id", None)}
    said |= {m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding)}
    return {token for token in said if isinstance(token, int)}


def float_dtype(model: nn.Module) -> str:
    """The dtype of most of a model's floating-point parameters, as an IR word."""
    counts: dict[torch.dtype, int] = {}
    for p in model.parameters():
        if p.is_floating_point():
            counts[p.dtype] = counts.get(p.dtype, 0) + p.numel()
    if not counts:
        return "f32"
    most = max(counts, key=counts.__getitem__)
    if most not in DTYPE_WORDS:
        known = ", ".join(DTYPES)
        raise CompileError(f"the parameters are {most}; give a dtype out of {known}")
    return DTYPE_WORDS[most]


def checkpoint_folder(model: str | Path) -> Path:
    """The directory of a checkpoint, downloaded where it is a name on the Hugging Face Hub; raises
    CompileError where there is none.
    """
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CompileError(f"{folder}: no Hugging Face checkpoint: it has no config.json")
        return folder
    if isinstance(model, Path) or model.count("/") != 1 or model.startswith((".", "/")):
        raise CompileError(f"{model}: no such directory")
    return _downloaded(model)


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise CompileError(
            f"{name}: no such directory, and the Hugging Face Hub does not give it: {reason}"
        ) from error


def skeleton(folder: Path, dtype: str = "auto") -> nn.Module:
    """The model of a checkpoint with its buffers computed and its parameters on the meta device."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
        wanted = DTYPES[dtype] if dtype != "auto" else _own_dtype(config, folder)
        with _parameters_on_meta():
            model = language_model(config, wanted)
            model.tie_weights()
            _keep_wide(model, wanted)
    except Exception as error:
        raise CompileError(f"{folder}: transformers cannot make this model: {error}") from error
    empty = [name for name, b in model.named_buffers() if b.is_meta]
    if empty:
        raise CompileError(f"{folder}: buffers without a value: {', '.join(empty)}")
    return model.eval()


def language_model(config: Any, dtype: torch.dtype) -> Any:
    """The causal language model of a Hugging Face config, with new weights.

    A config of several models, such as encoders of images beside a language model, gives the whole;
    the language model alone where the type's class is of that, or where the whole takes libraries
    that are not installed. Its weights are named in checkpoints as those of the whole.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    part = config.get_text_config(decoder=True)
    if part is config:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    wanted = getattr(family, "config_class", None)
    if wanted is not None and not isinstance(config, wanted) and isinstance(part, wanted):
        return family._from_config(part, dtype=dtype)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ImportError:
        if type(part) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise
        return AutoModelForCausalLM.from_config(part, dtype=dtype)


def _keep_wide(model: Any, dtype: torch.dtype) -> None:
    """Turn to float32 what a model keeps so at any dtype, as transformers does on loading."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for pattern, wide in model._get_dtype_plan(dtype).items():
        for name, tensor in tensors.items():
            if re.search(rf"(^|\.)({pattern})(\.|$)", name):
                tensor.data = tensor.data.to(wide)


def _own_dtype(config: Any, folder: Path) -> torch.dtype:
    """The dtype that the configuration names, else that of the largest stored weight."""
    named = getattr(config, "dtype", None)
    named = getattr(torch, named) if isinstance(named, str) else named
    if named in DTYPE_WORDS:
        return named
    files = SafetensorsFiles.of_directory(folder)
    stored = [files.describe(name) for name in files.names()]
    largest = max(stored, key=lambda s: torch.Size(s[0]).numel())[1]
    return largest if largest in DTYPE_WORDS else torch.float32


class _EmptyOnMeta(TorchFunctionMode):
    """Uninitialized tensors take no memory; everything that has a value is computed as always."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The call, with empty tensors on the meta device."""
        kwargs = dict(kwargs or {})
        if func is torch.empty and "device" not in kwargs:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside have parameters on the meta device, and buffers as their code computes
    them.

    Rotary frequencies and their like are in no checkpoint: torch.device("meta") would lose them.
    """
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, given: nn.Parameter | None) -> None:
        register(module, name, given)
        if given is not None and not given.is_meta:
            empty = nn.Parameter(given.detach().to("meta"), requires_grad=False)
            module._parameters[name] = empty

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        with torch.no_grad(), _EmptyOnMeta():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
