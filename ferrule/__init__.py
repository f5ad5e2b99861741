"""Ferrule binds a language model written in PyTorch to a machine.

`compile` makes an `Artifact` from a model, `load` opens one from disk; both generate text. Every name
is imported when it is first used, so that `import ferrule` costs nothing and an artifact runs where no
compiler is installed.
"""

from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"
__all__ = ["Artifact", "Completion", "SamplingParams", "Target", "__version__", "compile", "load"]

_HOMES = {
    "Artifact": ".runtime.artifact",
    "Completion": ".runtime.engine",
    "SamplingParams": ".runtime.sampling",
    "Target": ".ir.target",
    "compile": ".compiler.api",
    "load": ".runtime.artifact",
}

# In a source tree the other folders lie beside this one, not in it: let `python -m ferrule` find them.
_tree = Path(__file__).resolve().parent.parent
if (_tree / "pyproject.toml").is_file() and (_tree / "ir").is_dir():
    __path__.append(str(_tree))


def __getattr__(name: str) -> object:
    """The public name, from the module that is its home."""
    home = _HOMES.get(name)
    if home is None:
        known = ", ".join(__all__)
        raise AttributeError(f"module 'ferrule' has no attribute {name!r}; it has {known}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
