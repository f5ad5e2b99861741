"""Ferrule binds a language model written in PyTorch to a machine.

`compile` makes an `Artifact` from a model, `load` opens one from disk; both generate text. Every
name is imported when it is first used, so that `import ferrule` costs nothing and an artifact runs
where no compiler is installed.
"""

# The mapped folders are beside this one in a source tree and inside it once installed.
# pyright: reportMissingImports=false

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compiler.api import Recipe, compile
    from .ir.target import Target
    from .runtime.artifact import Artifact, load
    from .runtime.engine import Completion
    from .runtime.sampling import SamplingParams

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "Completion",
    "Recipe",
    "SamplingParams",
    "Target",
    "__version__",
    "compile",
    "load",
]

_HOMES = {
    "Artifact": ".runtime.artifact",
    "Completion": ".runtime.engine",
    "Recipe": ".compiler.api",
    "SamplingParams": ".runtime.sampling",
    "Target": ".ir.target",
    "compile": ".compiler.api",
    "load": ".runtime.artifact",
}

# In a source tree `python -m ferrule` finds the mapped folders beside this one.
_tree = Path(__file__).resolve().parent.parent
if (_tree / "pyproject.toml").is_file() and (_tree / "ir").is_dir():
    __path__.append(str(_tree))


def __getattr__(name: str) -> object:
    """The public name, from the module that is its home."""
    home = _HOMES.get(name)
    if home is None:
        known = ", ".join(__all__)
        raise AttributeError(f"module 'ferrule' has no attribute {name!r}; it has {known}")
    value: object = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
