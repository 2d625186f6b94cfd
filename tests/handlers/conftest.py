"""Models for tests of the local engine: tiny random ones made here, and the real one that demos use."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from platformdirs import user_cache_dir
from sqlft_local.model_cache import MODEL_CACHE, ModelCache
from tiny_tokenizer import CHATML, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from sqlft import plugins

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}

PROCESSORS = {
    "matrix units": "avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8",
    "bfloat16": "avx2 avx512f avx512_vnni avx512_bf16",
    "avx2": "avx2",
}
"""A processor of each kind that `auto` tells apart where OpenVINO is not, by its features."""
WITH_OPENVINO = "with OpenVINO"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `processor_has(a, b)` is skipped where the processor has none of these features."""
    from sqlft_local.machine import detect_cpu_features

    for mark in item.iter_markers("processor_has"):
        if not set(mark.args) & set(detect_cpu_features()):
            pytest.skip(f"the processor has no {' and no '.join(mark.args)}")


@pytest.fixture(params=[*sorted(PROCESSORS), WITH_OPENVINO])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs once for each way that `auto` can take; processes that it starts take it too."""
    if request.param != WITH_OPENVINO:
        monkeypatch.setenv("SQLFT_CPU_FEATURES", PROCESSORS[request.param])
        monkeypatch.setenv("SQLFT_BACKENDS", "transformers, llama.cpp")
    return str(request.param)


@pytest.fixture
def residents(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelCache]:
    """Models that the test loaded, and no other test: freed at its end."""
    monkeypatch.setattr(MODEL_CACHE, "_entries", OrderedDict())
    yield MODEL_CACHE
    MODEL_CACHE.unload(lambda key: True)


def make_model(
    folder: Path, kind: str = "llama", template: str | None = CHATML, control_tokens: Sequence[str] = (), **shape: Any
) -> Path:
    """A random model of the kind, saved in Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    words = make_tokenizer(folder, template, control_tokens)
    torch.manual_seed(7)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=words, **{**SHAPE, **ids, "initializer_range": 0.2, **shape})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other make tiny models slow where other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers."""
    return make_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def model_maker(tmp_path: Path) -> Callable[..., Path]:
    """`make_model` below the test's folder."""

    def make(name: str = "model", **given: Any) -> Path:
        return make_model(tmp_path / name, **given)

    return make


@pytest.fixture(scope="session")
def shared_model_maker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_model`, for a base that several tests read."""

    def make(**given: Any) -> Path:
        return make_model(tmp_path_factory.mktemp("shared") / "model", **given)

    return make


@pytest.fixture(scope="session")
def kept_bases() -> Path:
    """Where the real base stays between runs of the tests: SQLFT_TEST_BASES, or the user's cache."""
    return Path(os.environ.get("SQLFT_TEST_BASES") or Path(user_cache_dir("sqlft-tests")) / "bases")


@pytest.fixture
def smollm(kept_bases: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the real base, got once."""
    from sqlft_local import pull

    torch.set_num_threads(2)
    monkeypatch.setenv("SQLFT_BASES", str(kept_bases))
    pull("smollm2-135m", lambda what, share: None)
    return "smollm2-135m"


@pytest.fixture(scope="session")
def tiny_adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny base that changes what it says."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=4, lora_alpha=8, target_modules=layers)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray cluster of this machine with two cores, whose actors find the tests' handlers; one for all tests."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield str(made.address_info["gcs_address"])
    ray.shutdown()


@pytest.fixture
def ray_cluster(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cluster as this test's own, and processes' that it starts; the tests' handlers are installed here, too."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    plugins.find_entry_points.cache_clear()
    yield
    plugins.find_entry_points.cache_clear()
