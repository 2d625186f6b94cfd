from __future__ import annotations

import os
from pathlib import Path

import pytest

from sqlft.catalog import files
from sqlft.errors import CatalogError, HandlerError


@pytest.fixture
def artifact_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work" / "adapter"
    (folder / "deep").mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"weights")
    (folder / "deep" / "config.json").write_text("{}")
    return folder


def test_a_folder_is_moved(artifact_folder: Path, tmp_path: Path) -> None:
    before = files.compute_digest(artifact_folder)
    place = tmp_path / "models" / "m" / "2"
    opened, digest = files.publish_artifact(artifact_folder, place)
    assert (opened, digest) == (place, before)
    assert not artifact_folder.exists()
    assert sorted(p.name for p in place.parent.iterdir()) == ["2"]
    files.verify_artifact(opened, digest)


def test_a_single_file_gets_a_folder(artifact_folder: Path, tmp_path: Path) -> None:
    opened, digest = files.publish_artifact(artifact_folder / "adapter.safetensors", tmp_path / "2")
    assert opened == tmp_path / "2" / "adapter.safetensors"
    assert opened.read_bytes() == b"weights"
    files.verify_artifact(opened, digest)


def test_what_an_earlier_try_left_is_replaced(artifact_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "2"
    place.mkdir()
    (place / "old").touch()
    (tmp_path / "2.staging").mkdir()
    files.publish_artifact(artifact_folder, place)
    assert not (place / "old").exists()


@pytest.mark.parametrize("name", ["weights.bin", "optimizer.PT", "x.pkl", "deep/y.pickle", "code.py"])
def test_what_may_run_code_is_refused(artifact_folder: Path, tmp_path: Path, name: str) -> None:
    (artifact_folder / name).write_bytes(b"x")
    with pytest.raises(HandlerError, match="safetensors"):
        files.publish_artifact(artifact_folder, tmp_path / "2")
    assert not (tmp_path / "2").exists()
    assert artifact_folder.exists()


def test_changes_are_noticed(artifact_folder: Path) -> None:
    digest = files.compute_digest(artifact_folder)
    files.verify_artifact(artifact_folder, digest)
    (artifact_folder / "adapter.safetensors").write_bytes(b"changed")
    with pytest.raises(CatalogError, match="were changed"):
        files.verify_artifact(artifact_folder, digest)
    (artifact_folder / "adapter.safetensors").write_bytes(b"weights")
    files.verify_artifact(artifact_folder, digest)
    (artifact_folder / "more").touch()
    with pytest.raises(CatalogError, match="were changed"):
        files.verify_artifact(artifact_folder, digest)
    (artifact_folder / "more").rename(artifact_folder / "adapter.safetensors")
    with pytest.raises(CatalogError, match="were changed"):
        files.verify_artifact(artifact_folder, digest)


def test_what_is_missing_is_noticed(artifact_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="are missing"):
        files.verify_artifact(tmp_path / "nowhere", "d")
    os.symlink(tmp_path / "nowhere", artifact_folder / "link")
    with pytest.raises(CatalogError, match="cannot be read"):
        files.verify_artifact(artifact_folder, "d")


def test_the_digest_tells_names_from_contents(tmp_path: Path) -> None:
    digests = set()
    for names in (("ab", "c"), ("a", "bc")):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            (folder / name).write_text(name)
        digests.add(files.compute_digest(folder))
    assert len(digests) == 2
