"""What is heavy is imported when it is needed, and not before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = ["torch", "transformers", "peft", "openai", "tokenizers", "safetensors", "gguf"]
FRAMES = ["pandas", "polars", "pyarrow.compute", "pyarrow.dataset", "pyarrow.parquet"]
ANALYSIS = ["sqlglot"]
SCREEN = ["prompt_toolkit", "rich", "pygments"]
CONVENIENCES = ["asyncio", "multiprocessing", "unittest", "http.client", "hypothesis", "pytest"]
HANDLERS = ["sqlft_echo", "sqlft_local"]

CODE = {
    "import": "import sqlft",
    "parse": "import sqlft; sqlft.parse('FINETUNE m FROM (SELECT 1); SELECT 2')",
    "plain": "import sqlft; c = sqlft.connect(); c.execute('CREATE TABLE t AS SELECT 42 AS a; FROM t').fetchall()",
    "show": "import sqlft; sqlft.connect().execute('SHOW HANDLERS; SHOW MODELS; SHOW ML_ENGINES').fetchall()",
    "metrics": "import sqlft.metrics; list(sqlft.metrics.METRICS)",
    "shell": "from sqlft.cli import main; main(['shell', '-c', 'SELECT 42'])",
    "model": (
        "import sqlft; c = sqlft.connect(warn=print)\n"
        "c.execute(\"CREATE MODEL m PREDICT a USING engine = 'echo'; SELECT a FROM m WHERE content = 'x'\").fetchall()"
    ),
}
FORBIDDEN = {  # pyarrow itself looks for pandas where it makes a table of Python values
    "import": [*MODELS, *FRAMES, *ANALYSIS, *SCREEN, *CONVENIENCES, *HANDLERS],
    "parse": [*MODELS, *FRAMES, *ANALYSIS, *SCREEN, *CONVENIENCES, *HANDLERS],
    "plain": [*MODELS, *FRAMES, *ANALYSIS, *SCREEN, *HANDLERS],
    "show": [*MODELS, *ANALYSIS, *SCREEN],
    "metrics": [*MODELS, *FRAMES, *ANALYSIS, *SCREEN, *HANDLERS],
    "shell": [*MODELS, *FRAMES, *ANALYSIS, "prompt_toolkit", "pygments", *HANDLERS],
    "model": [*MODELS, *SCREEN, "sqlft_local"],
}


def find_loaded(code: str, folder: Path) -> set[str]:
    """The modules that are there after the code, in a Python of its own."""
    told = folder / "modules.json"
    text = f"{code}\nimport json, sys; open({str(told)!r}, 'w').write(json.dumps(sorted(sys.modules)))"
    env = {**os.environ, "SQLFT_HOME": str(folder)}
    subprocess.run([sys.executable, "-c", text], check=True, env=env, cwd=folder, stdout=subprocess.DEVNULL)
    return set(json.loads(told.read_text()))


@pytest.mark.parametrize("what", CODE)
def test_what_is_not_needed_is_not_loaded(what: str, tmp_path: Path) -> None:
    assert find_loaded(CODE[what], tmp_path).intersection(FORBIDDEN[what]) == set()
