"""`ferrule collect-env`: what a report of a fault should say of the machine and its packages."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

_PACKAGES = ("ferrule", "torch", "transformers", "apache-tvm", "apache-tvm-ffi", "triton", "numpy")
_PACKAGES = (*_PACKAGES, "ml-dtypes", "tokenizers", "safetensors", "jinja2", "llguidance")
_PACKAGES = (*_PACKAGES, "fastapi", "uvicorn", "pydantic", "prometheus-client", "openai")


def facts() -> dict[str, Any]:
    """The machine, its interpreter and its packages; None for what is not installed."""
    from ..runtime.executor import available_memory
    from ..runtime.library import available_cores
    from ..runtime.manifest import cpu_features, cpu_name

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(available_cores()),
        "features": sorted(
            f for f in cpu_features() if f.startswith(("avx", "amx", "fma", "f16c"))
        ),
        "available_memory_bytes": available_memory(),
        "gpus": _gpus(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """The GPUs as their driver names them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    asked = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def collect_env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the machine and the packages, for a report of a fault."""
    found = facts()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            for package, number in value.items():
                typer.echo(f"{package:<24}{number or 'not installed'}")
        else:
            text = " ".join(value) if isinstance(value, list) else str(value)
            typer.echo(f"{name:<24}{text or 'none'}")
