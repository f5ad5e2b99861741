"""Names the packages: `ferrule`, and every package under the root folders that pyproject.toml maps
into it."""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup


def package_names(root: Path) -> list[str]:
    """Every mapped package and all of its subpackages; one that is added later needs no entry
    here."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    folders = settings["tool"]["setuptools"]["package-dir"]
    names = list(folders)
    for package, folder in folders.items():
        names += [f"{package}.{name}" for name in find_packages(str(root / folder))]
    return names


setup(packages=package_names(Path(__file__).resolve().parent))
