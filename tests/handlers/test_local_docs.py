"""The documentation's examples of local models run, on a random model under the name of the one that they train."""

from __future__ import annotations

import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


def generator() -> ModuleType:
    """docs/generate.py, which is in no package."""
    spec = spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = generator()
PAGES = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in generate.pages()}
LOCAL = [name for name, page in PAGES.items() if any("local" in b.words for b in generate.blocks(page))]


@pytest.mark.parametrize("name", LOCAL)
def test_examples_of_local_models_run(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny, tmp_path / "bases" / "smollm2-135m")
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))
    (tmp_path / "page").mkdir()
    assert generate.made(PAGES[name], tmp_path / "page", run_local=True) == PAGES[name]
