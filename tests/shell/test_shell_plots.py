"""`.plot`: charts of letters, and what to do where there is nothing to draw."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

pytest.importorskip("plotext", reason="charts need plotext: pip install 'sqlft[evaluation]'")

Run = Callable[..., subprocess.CompletedProcess[str]]
MODEL = "CREATE OR REPLACE MODEL m PREDICT answer USING engine = 'counter', prompt_template = '{{content}}'"
ASK = "CREATE PRICE FOR counter USING input = 1, output = 1; SELECT answer FROM m WHERE content IN ('a', 'b')"


def plot(run_sqlft: Run, *lines: str) -> subprocess.CompletedProcess[str]:
    """What a script with these lines prints."""
    return run_sqlft("shell", *(word for line in lines for word in ("-c", line)))


def test_cost_is_drawn_by_version(run_sqlft: Run) -> None:
    done = plot(run_sqlft, MODEL, ASK, ".plot cost m", ".plot speed")
    assert done.returncode == 0, done.stderr
    assert "m: USD a thousand requests" in done.stdout
    assert "m: seconds a request" in done.stdout
    assert "v1" in done.stdout
    assert "\x1b" not in done.stdout


def test_lines_are_named_below_the_chart_where_they_hide_nothing(run_sqlft: Run) -> None:
    made = "CREATE MODEL t PREDICT a USING engine = 'stranger', prompt_template = '{{q}}'"
    tuned = "FINETUNE t FROM (SELECT i AS q, i AS a FROM range(60) r(i)) USING steps = 20"
    done = plot(run_sqlft, made, tuned, ".plot loss t")
    assert done.returncode == 0, done.stderr
    chart = done.stdout[done.stdout.index("t: loss by step") :].splitlines()
    assert chart[-1].split() == ["step", "•", "v2", "train", "x", "v2", "valid"]
    assert chart[-2].split() == ["1", "5", "9", "13", "17", "20"]
    assert "v2" not in "".join(chart[:-2])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (".plot loss m", "FINETUNE it first"),
        (".plot metrics", "EVALUATE MODEL"),
        (".plot lost", "Did you mean 'loss'"),
        (".plot loss mm", "Did you mean 'm'"),
        (".plot", ".plot CHART [MODEL]"),
    ],
)
def test_what_cannot_be_drawn_says_what_to_do(run_sqlft: Run, command: str, words: str) -> None:
    done = plot(run_sqlft, MODEL, command)
    assert done.returncode == 1
    assert words in done.stderr
