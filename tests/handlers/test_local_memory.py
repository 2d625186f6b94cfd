"""The bytes that shapes say, against what torch counts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sqlft_local import machine
from sqlft_local.base import loading
from sqlft_local.base.config import DecoderShape, read_shape
from sqlft_local.options import ModelOptions, TrainOptions
from sqlft_local.train import lora, memory
from sqlft_local.train.memory import TrainingSetup
from transformers import AutoConfig

from sqlft.errors import OptionError

CODELLAMA_34B = DecoderShape(48, 8192, 22016, 64, 8, 128, 32000, False)
CODELLAMA_7B = DecoderShape(32, 4096, 11008, 32, 32, 128, 32016, False)


def test_parameters_are_those_of_the_model(tiny: Path) -> None:
    """Every number of the base, and every one that is trained."""
    loaded = loading.load_base(tiny, ModelOptions(dtype="float32"), "cpu", training=True)
    shape = read_shape(loaded.model.config.to_dict())
    assert shape.parameters == sum(p.numel() for p in loaded.model.parameters())
    attached = lora.attach(loaded.model, TrainOptions(r=3, target_modules=["q_proj", "down_proj"]), None)
    counted = sum(p.numel() for p in attached.trained.values())
    assert memory.count_adapter_parameters(shape, 3, ["q_proj", "down_proj"]) == counted
    assert memory.count_adapter_parameters(shape, 3, ["all-linear"]) > counted


def test_large_models_have_the_sizes_they_are_named_for() -> None:
    """34 billion weights: 67 GB in bfloat16, a little over 34 GB in int8."""
    assert 33e9 < CODELLAMA_34B.parameters < 34.5e9
    assert 6.6e9 < CODELLAMA_7B.parameters < 6.8e9
    assert 66e9 < memory.estimate_weight_bytes(CODELLAMA_34B, "bfloat16") < 69e9
    assert 33e9 < memory.estimate_weight_bytes(CODELLAMA_34B, "bfloat16", "int8") < 36e9
    assert 18e9 < memory.estimate_weight_bytes(CODELLAMA_34B, "bfloat16", "nf4") < 21e9


def test_a_config_without_the_newer_keys() -> None:
    """Older configs name neither the heads of keys nor a head's width."""
    old = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100}
    assert read_shape(old) == DecoderShape(2, 64, 256, 4, 4, 16, 100, False)
    assert read_shape(AutoConfig.for_model("llama", **old, intermediate_size=256).to_dict()).head_dim == 16


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_tokens_that_fit_fill_the_bytes(checkpointing: bool) -> None:
    """One more would be too many."""
    setting = TrainingSetup("bfloat16", checkpointing=checkpointing)
    left = 3 << 30
    tokens = memory.fit_tokens(CODELLAMA_7B, setting, left)
    above = memory.estimate_training_bytes(CODELLAMA_7B, setting, tokens) - memory.estimate_fixed_bytes(
        CODELLAMA_7B, setting
    )
    assert above <= left < above + 2 * memory.estimate_token_bytes(CODELLAMA_7B, setting)
    assert memory.fit_tokens(CODELLAMA_7B, setting, 1000) == 0


def test_checkpointing_takes_a_fraction() -> None:
    """An input a block in place of all that the block keeps."""
    plain, checkpointed = (
        memory.estimate_token_bytes(CODELLAMA_34B, TrainingSetup("bfloat16", checkpointing=c)) for c in (False, True)
    )
    assert checkpointed < plain / 5


PEAK = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
import test_local_training as t
from sqlft.handler import TrainingSet
from sqlft.training.worker import measure_peak_memory
from sqlft_local.train import memory
from sqlft_local.options import ModelOptions
memory.read_available_memory = lambda device: 10**10  # whatever else runs on this machine
rows = [("How many of " + name * 40 + "?", "none " * 30) for name in t.NAMES] + [("word " * 350, "yes")]
options = eval(sys.argv[4])
model = ModelOptions(dtype=options.pop("dtype"))
data = TrainingSet(t.table(rows))
t.train(Path(sys.argv[1]), Path(sys.argv[2]), data, model=model, batch_size=21, n_epochs=1, **options)
print(measure_peak_memory())
"""


def peak(base: Path, work: Path, **options: object) -> int:
    """Most bytes that a training takes, in a process of its own."""
    given = [str(base), str(work), str(Path(__file__).parent), repr(options)]
    done = subprocess.run([sys.executable, "-c", PEAK, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        ("float32", 1.4e9),
        pytest.param("bfloat16", 1.15e9, marks=pytest.mark.processor_has("amx_bf16", "avx512_bf16")),
    ],
)
def test_peak_memory_follows_the_bound(
    model_maker: Callable[..., Path], tmp_path: Path, dtype: str, bound: float
) -> None:
    """One row is as long as all others: the smaller bound is kept by passes of fewer tokens and checkpointing."""
    base = model_maker(hidden_size=128, intermediate_size=3072, num_hidden_layers=12, max_position_embeddings=4096)
    free = peak(base, tmp_path / "free", dtype=dtype)
    assert free > 1.15 * bound
    assert peak(base, tmp_path / "bound", dtype=dtype, max_memory=str(round(bound))) <= 1.03 * bound


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("1.5 gib", 3 << 29), ("4096", 4096), ("2T", 2 * 10**12)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    """As people write them."""
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["much", "8 XB", "-1", "GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """With an example."""
    with pytest.raises(OptionError, match="max_memory"):
        memory.parse_size(text)


def test_few_products_stay_prepared_unless_one_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What oneDNN and PyTorch keep for each shape would add up over a training."""
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    machine.configure_math_libraries()
    assert os.environ["LRU_CACHE_CAPACITY"] == machine.PRIMITIVE_CACHE_SIZE
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
def test_pages_of_a_file_are_given_back_and_read_again(tmp_path: Path) -> None:
    file, size = tmp_path / "weights", 8 << 20
    file.write_bytes(os.urandom(size))
    weights = torch.from_file(str(file), size=size, dtype=torch.uint8)
    before = weights.clone()

    def read_mapped() -> int:
        line = next(n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith("RssFile"))
        return int(line.split()[1]) << 10

    mapped = read_mapped()
    machine.drop_file_pages(weights.data_ptr(), weights.nbytes)
    assert mapped - read_mapped() > size * 3 // 4
    assert torch.equal(weights, before)
    machine.drop_file_pages(before.data_ptr(), before.nbytes)
    assert torch.equal(weights, before)  # what is no file's stays
