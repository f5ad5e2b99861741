"""Leave to use tile registers."""

from __future__ import annotations

import pytest
from ferrule.runtime import manifest, tiles
from ferrule.runtime.errors import ArtifactError
from ferrule.runtime.manifest import check_machine, cpu_features


def test_tiles_are_allowed_where_the_processor_has_them() -> None:
    assert tiles.allow_tiles() == ("amx_tile" in cpu_features())
    assert tiles.allow_tiles() == tiles.allow_tiles()


def test_other_machines_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles.platform, "machine", lambda: "aarch64")
    assert not tiles.allow_tiles()


def test_an_artifact_with_tiles_is_refused_where_the_system_keeps_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(manifest, "cpu_features", lambda: frozenset({"amx_tile", "avx2"}))
    monkeypatch.setattr(manifest, "allow_tiles", lambda: False)
    target = {"kind": "cpu", "arch": "sapphirerapids", "features": ["amx_tile", "avx2"]}
    with pytest.raises(ArtifactError, match="tile registers the system does not let"):
        check_machine(tmp_path, {"target": target})
