"""CREATE MODEL … FROM ADAPTER, GGUF and EXPORT: what others made answers as it does where it was made."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sqlft_local import Local
from sqlft_local.gguf import write as gguf_export
from sqlft_local.options import ModelOptions, TrainOptions
from tiny_tokenizer import CHATML
from transformers import AutoModelForCausalLM, AutoTokenizer

import sqlft
from sqlft.catalog import files
from sqlft.catalog.records import ModelKey
from sqlft.errors import CatalogError, NotSupported, OptionError, ProviderError, SqlftError
from sqlft.handler import Artifact, ModelSpec, TrainingSet
from sqlft.statements import imports

PROMPT = "How many singers are there in France?"
EXACT = "backend = 'transformers', max_tokens = 12"
LAYERS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 5}},
}
ROWS = "(SELECT 'How many in t' || i || '?' AS content, 'SELECT ' || i AS answer FROM range(8) t(i))"


def make_adapter(base: Path, folder: Path, **how: Any) -> Path:
    """An adapter as PEFT makes and saves it, with numbers that change what the base says."""
    torch.manual_seed(1)
    given = {"r": 4, "lora_alpha": 8, "target_modules": LAYERS, "task_type": "CAUSAL_LM", **how}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**given))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def ask_peft(base: Path, adapter: Path) -> str:
    """What transformers and PEFT answer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**prompt, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)
    return str(tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def train(base: Path, work: Path, start: Artifact | None = None) -> Artifact:
    """A training of two steps with next to no learning rate, in this process."""
    turns = [
        [{"role": "user", "content": f"How many in t{i}?"}, {"role": "assistant", "content": f"SELECT {i}"}]
        for i in range(8)
    ]
    options = TrainOptions(n_epochs=1, batch_size=4, learning_rate=1e-12)
    work.mkdir()
    spec = ModelSpec(str(base), ModelOptions(chat_template=CHATML, dtype="float32"))
    return Local().train(spec, start, TrainingSet(pa.table({"messages": turns})), options, work, lambda progress: None)


@pytest.fixture
def con(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[sqlft.Connection]:
    """A connection to a database of the test's own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = sqlft.connect(str(tmp_path / "own.duckdb"), warn=lambda text: None)
    yield made
    made.close()


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each kind that is read."""
    folder = tmp_path_factory.mktemp("adapters")
    return {kind: make_adapter(tiny, folder / kind, **how) for kind, how in KINDS.items()}


def ask(con: sqlft.Connection, name: str, using: str = EXACT) -> str:
    """The model's answer."""
    return str(con.execute(f"SELECT answer FROM {name} WHERE content = $1 USING {using}", [PROMPT]).fetchall()[0][0])


def describe(con: sqlft.Connection, name: str) -> dict[str, Any]:
    """DESCRIBE's row."""
    con.execute(f"DESCRIBE {name}")
    return dict(zip([column[0] for column in con.description or ()], con.fetchall()[0], strict=True))


def has_nothing(con: sqlft.Connection) -> bool:
    """No model, and nothing of one on disk."""
    folder = con.session.catalog.folder / "models"
    return not con.execute("SHOW MODELS").fetchall() and not (folder.exists() and list(folder.iterdir()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_answers_as_peft_does(
    con: sqlft.Connection, tiny: Path, adapters: dict[str, Path], kind: str
) -> None:
    """Version 2, the active one; version 1 is the base; the files are copied."""
    con.execute(f"CREATE MODEL m FROM ADAPTER '{adapters[kind]}' USING dtype = 'float32'")
    rows = con.execute("SELECT version, status, active, parent FROM sqlft.versions ORDER BY 1").fetchall()
    assert rows == [(1, "complete", False, None), (2, "complete", True, 1)]
    expected = ask_peft(tiny, adapters[kind])
    assert ask(con, "m") == expected
    assert ask(con, "m.1") != expected
    copied = {file.name for file in Path(describe(con, "m")["ARTIFACT"]).iterdir()}
    assert copied == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("kind", ["rslora", "patterns"])
@pytest.mark.parametrize("adapter", ["merged", "runtime"])
def test_llama_cpp_multiplies_with_the_adapter_s_own_scales(
    con: sqlft.Connection, tiny: Path, adapters: dict[str, Path], kind: str, adapter: str
) -> None:
    """Of ranks that differ, too."""
    con.execute(f"CREATE MODEL m FROM ADAPTER '{adapters[kind]}'")
    using = f"backend = 'llama.cpp', precision = 'f32', adapter = '{adapter}', max_tokens = 4"
    assert ask_peft(tiny, adapters[kind]).startswith(ask(con, "m", using))


def test_what_only_transformers_computes_is_asked_there(con: sqlft.Connection, adapters: dict[str, Path]) -> None:
    """By itself; where another program was asked for, the error says so."""
    con.execute(f"CREATE MODEL m FROM ADAPTER '{adapters['dora']}'")
    assert ask(con, "m", "max_tokens = 4")
    with pytest.raises(NotSupported, match=r"use_dora[\s\S]*backend = 'transformers'"):
        ask(con, "m", "backend = 'llama.cpp'")


def test_a_version_says_where_it_is_from(con: sqlft.Connection, adapters: dict[str, Path]) -> None:
    """The folder, the digests of its files and PEFT's version."""
    folder = adapters["plain"]
    con.execute(
        f"CREATE MODEL m FROM ADAPTER '{folder}' PREDICT reply USING prompt_template = 'Q: {{{{q}}}}', tag = 'x'"
    )
    row = describe(con, "m")
    assert (row["STARTED_FROM"], row["PREDICT"], row["INPUTS"]) == (
        f"taken in from the adapter {folder}",
        "reply",
        ["q"],
    )
    imported = json.loads(row["DETAILS"])["imported"]
    weights = sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert imported["files"]["adapter_model.safetensors"] == f"sha256:{weights}"
    assert imported["peft_version"]


@pytest.mark.parametrize("kind", ["rslora", "patterns"])
def test_training_goes_on_from_an_adapter(tiny: Path, adapters: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """With its ranks and scales: with next to no learning rate the answers stay, and PEFT reads them so."""
    made = train(tiny, tmp_path / "work", Artifact(adapters[kind]))
    assert made.path is not None
    assert ask_peft(tiny, made.path) == ask_peft(tiny, adapters[kind])


def test_dora_is_not_trained_on(tiny: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    """The error names what does."""
    with pytest.raises(NotSupported, match=r"DoRA[\s\S]*from version 1"):
        train(tiny, tmp_path / "work", Artifact(adapters["dora"]))


def test_evaluate_compares_base_and_adapter(con: sqlft.Connection, adapters: dict[str, Path]) -> None:
    """As versions of one model."""
    con.execute(f"CREATE MODEL m FROM ADAPTER '{adapters['plain']}' USING max_tokens = 2, backend = 'transformers'")
    rows = con.execute(f"EVALUATE MODEL m.1, m.2 ON {ROWS} USING metrics = ['exact_match']").fetchall()
    assert len(rows) == 2


def test_the_adapter_s_own_chat_template_counts(con: sqlft.Connection, tiny: Path, tmp_path: Path) -> None:
    """Those who trained it saved it beside the adapter; USING overrules it."""
    folder = make_adapter(tiny, tmp_path / "a")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    con.execute(f"CREATE MODEL m FROM ADAPTER '{folder}'")
    con.execute(f"CREATE MODEL n FROM ADAPTER '{folder}' USING chat_template = $${CHATML}$$")
    assert ask(con, "m") != ask(con, "n")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"bias": "lora_only"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "no matrix of a layer"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"task_type": "FEATURE_EXTRACTION"}, "answers with no text"),
    ],
)
def test_what_is_not_computed_is_refused(
    con: sqlft.Connection, tiny: Path, tmp_path: Path, how: dict[str, Any], why: str
) -> None:
    """With the reason and what to do, and nothing is left of it."""
    folder = make_adapter(tiny, tmp_path / "a", **how)
    with pytest.raises(NotSupported, match=rf"{why}[\s\S]*merge_and_unload"):
        con.execute(f"CREATE MODEL m FROM ADAPTER '{folder}'")
    assert has_nothing(con)


def test_an_adapter_of_another_base_is_refused(
    con: sqlft.Connection, tiny: Path, adapters: dict[str, Path], model_maker: Callable[..., Path], tmp_path: Path
) -> None:
    """Other widths, fewer or more layers, another architecture, a rank that its config does not say."""
    odd = Path(shutil.copytree(adapters["plain"], tmp_path / "odd"))
    config = json.loads((odd / "adapter_config.json").read_text())
    (odd / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    others = [
        (adapters["plain"], model_maker("wide", hidden_size=32)),
        (adapters["plain"], model_maker("shallow", num_hidden_layers=1)),
        (adapters["plain"], model_maker("deep", num_hidden_layers=3)),
        (adapters["plain"], model_maker("gpt2", kind="gpt2", n_embd=64, n_layer=2, n_head=4)),
        (odd, tiny),
    ]
    for folder, base in others:
        with pytest.raises(ProviderError, match="made for another base: "):
            con.execute(f"CREATE MODEL m FROM ADAPTER '{folder}' USING base = '{base}'")
    assert has_nothing(con)


def test_damaged_adapters_are_refused(con: sqlft.Connection, adapters: dict[str, Path], tmp_path: Path) -> None:
    """Pickles, cut files, no JSON, another method, no adapter at all."""
    pickled, cut, no_json, other, empty = (tmp_path / name for name in ("pickled", "cut", "no json", "it's", "empty"))
    for folder in (pickled, cut, no_json, other):
        shutil.copytree(adapters["plain"], folder)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    whole = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    (no_json / "adapter_config.json").write_text("{")
    (other / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING", "base_model_name_or_path": "a/b"}')
    empty.mkdir()
    for folder, why in [
        (pickled, "can run any code"),
        (cut, "cannot be read"),
        (no_json, "is no JSON"),
        (other, "PREFIX_TUNING"),
        (empty, "holds no adapter"),
        (tmp_path, "There is one in"),
        (tmp_path / "nowhere", "There is nothing at"),
    ]:
        with pytest.raises(SqlftError, match=why):
            con.execute(f"CREATE MODEL m FROM ADAPTER '{str(folder).replace(chr(39), chr(39) * 2)}'")
    assert has_nothing(con)


def test_a_base_that_is_not_here_is_to_be_named(
    con: sqlft.Connection, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """Whoever made the adapter had it elsewhere, or said nothing of it."""
    folder = Path(shutil.copytree(adapters["plain"], tmp_path / "moved"))
    config = json.loads((folder / "adapter_config.json").read_text())
    for base, why in [("/home/else/llama", "made for the base '/home/else/llama'"), (None, "names no base")]:
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(OptionError, match=rf"{why}[\s\S]*USING base ="):
            con.execute(f"CREATE MODEL m FROM ADAPTER '{folder}'")
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "some/where"}))
    con.execute(f"CREATE MODEL m FROM ADAPTER '{folder}'")
    assert "not on this machine yet" in describe(con, "m")["REMARKS"][0]


def test_an_engine_that_takes_no_weights_says_so(con: sqlft.Connection, adapters: dict[str, Path]) -> None:
    """Before it reads any option."""
    with pytest.raises(NotSupported, match=r"'echo' does not take in weights[\s\S]*engine = 'local'"):
        con.execute(f"CREATE MODEL m FROM ADAPTER '{adapters['plain']}' USING engine = 'echo'")


def test_names_that_are_taken(con: sqlft.Connection, adapters: dict[str, Path]) -> None:
    """IF NOT EXISTS reads no files; OR REPLACE puts the new model in the old one's place."""
    con.execute(f"CREATE MODEL m FROM ADAPTER '{adapters['plain']}'")
    before = describe(con, "m")["ARTIFACT"]
    con.execute("CREATE MODEL IF NOT EXISTS m FROM ADAPTER '/nowhere'")
    with pytest.raises(SqlftError, match="There is a model 'm' already"):
        con.execute(f"CREATE MODEL m FROM ADAPTER '{adapters['rslora']}'")
    con.execute(f"CREATE OR REPLACE MODEL m FROM ADAPTER '{adapters['rslora']}'")
    assert not Path(before).exists()
    assert len(con.execute("SELECT * FROM sqlft.versions").fetchall()) == 2


def test_a_full_disk_leaves_nothing(
    con: sqlft.Connection, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While files are copied, and once they are in their place but not in the catalog."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((imports.shutil, "copyfile"), (files, "compute_digest")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(CatalogError, match="Free some disk space"):
                con.execute(f"CREATE MODEL m FROM ADAPTER '{adapters['plain']}'")
        assert has_nothing(con)


def test_ctrl_c_leaves_the_old_model(
    con: sqlft.Connection, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the new one takes its place."""
    con.execute(f"CREATE MODEL m FROM ADAPTER '{adapters['plain']}'")

    def stop(path: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "compute_digest", stop)
        with pytest.raises((KeyboardInterrupt, SqlftError)):
            con.execute(f"CREATE OR REPLACE MODEL m FROM ADAPTER '{adapters['rslora']}'")
    assert json.loads(describe(con, "m")["DETAILS"])["imported"]["path"] == str(adapters["plain"])
    assert ask(con, "m", "max_tokens = 2, backend = 'transformers'")


def test_a_killed_process_leaves_no_half_model(tmp_path: Path, adapters: dict[str, Path]) -> None:
    """Killed when the files are in their place and the catalog does not know of them: the next try makes it."""
    create = f"CREATE MODEL m FROM ADAPTER '{adapters['plain']}'"
    child = os.fork()
    if child == 0:
        files.compute_digest = lambda path: os.kill(os.getpid(), signal.SIGKILL) or ""
        sqlft.connect(str(tmp_path / "x.duckdb")).execute(create)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with sqlft.connect(str(tmp_path / "x.duckdb"), warn=lambda text: None) as con:
        assert con.execute("SHOW MODELS").fetchall() == []
        con.execute(create)
        assert ask(con, "m", "max_tokens = 2, backend = 'transformers'")


def make_gguf(base: Path, file: Path) -> Path:
    """The base as llama.cpp reads it."""
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    gguf_export.export(base, file, "f32", tokenizer, [2])
    return file


def test_a_gguf_file_is_asked_as_it_is(con: sqlft.Connection, tiny: Path, tmp_path: Path) -> None:
    """By its own vocabulary: the answer is the base's, and no folder is made of it; Ollama's have no suffix."""
    file = make_gguf(tiny, tmp_path / "sha256-1234")
    con.execute(f"CREATE MODEL g FROM GGUF '{file}' USING chat_template = $${CHATML}$$")
    con.execute(f"CREATE MODEL b PREDICT answer USING engine = 'local', base = '{tiny}'")
    exact = "backend = 'llama.cpp', precision = 'f32', max_tokens = 12"
    assert ask(con, "g", "max_tokens = 12") == ask(con, "b", exact)
    about = json.loads(describe(con, "g")["DETAILS"])
    assert (about["gguf"]["architecture"], about["imported"]["path"]) == ("llama", str(file))
    assert con.execute("UNLOAD MODEL g").fetchall() == [("g", 1)]
    with pytest.raises(OptionError, match="is the base itself"):
        con.execute(f"CREATE MODEL h FROM GGUF '{file}' USING base = '{tiny}'")


def test_a_gguf_file_answers_with_types(con: sqlft.Connection, tiny: Path, tmp_path: Path) -> None:
    """Bound by a grammar, as any model's."""
    file = make_gguf(tiny, tmp_path / "m.gguf")
    con.execute(f"CREATE MODEL g FROM GGUF '{file}' PREDICT (n INTEGER NOT NULL) USING chat_template = $${CHATML}$$")
    [(n,)] = con.execute("SELECT n FROM g WHERE content = 'How many?' USING max_tokens = 100").fetchall()
    assert n is None or isinstance(n, int)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_gguf_file_is_trained_on(
    con: sqlft.Connection, model_maker: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """As the folder that this house or transformers makes of it, whose numbers and tokens are those of the file."""
    file = make_gguf(model_maker(kind=kind), tmp_path / "m.gguf")
    con.execute(f"CREATE MODEL g FROM GGUF '{file}' USING chat_template = $${CHATML}$$")
    exact = ask(con, "g", "max_tokens = 4, backend = 'transformers', precision = 'f32'")
    assert exact.rstrip("\ufffd") == ask(con, "g", "max_tokens = 4")  # llama.cpp leaves out half a letter
    assert train(file, tmp_path / "work").details["steps"] == 2


def test_what_is_no_model_in_gguf_is_refused(
    con: sqlft.Connection, tiny: Path, tmp_path: Path, adapters: dict[str, Path]
) -> None:
    """A text, a cut file, an adapter, a part, a model of vectors: each with what to do."""
    whole = make_gguf(tiny, tmp_path / "m.gguf")
    text, cut, adapter = tmp_path / "text.gguf", tmp_path / "cut.gguf", tmp_path / "adapter.gguf"
    text.write_text("no model")
    (tmp_path / "notes.md").write_text("no model")
    cut.write_bytes(whole.read_bytes()[:-5000])
    gguf_export.export_adapter(tiny, adapters["plain"], adapter)
    first, second = (Path(shutil.copy(whole, tmp_path / f"m-0000{n}-of-00003.gguf")) for n in (1, 2))
    for file, why in [
        (text, "is no GGUF file"),
        (tmp_path / "notes.md", "is no GGUF file"),
        (cut, "is no complete GGUF file"),
        (adapter, "holds a LoRA adapter"),
        (first, "m-00003-of-00003.gguf is missing"),
        (second, "Name the first: m-00001-of-00003.gguf"),
        (tmp_path, "FROM GGUF 'adapter.gguf'".replace("adapter.gguf", str(adapter))),
        (tmp_path / "nowhere.gguf", "There is nothing at"),
    ]:
        with pytest.raises(SqlftError, match=why):
            con.execute(f"CREATE MODEL m FROM GGUF '{file}'")
    assert has_nothing(con)


def test_an_embedding_model_in_gguf_says_how_it_is_used(con: sqlft.Connection, tmp_path: Path) -> None:
    """With mode = 'embedding', which takes it."""
    import gguf
    import numpy

    writer = gguf.GGUFWriter(str(tmp_path / "e.gguf"), "bert")
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", numpy.zeros((2, 4), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotSupported, match=r"embedding model \(bert\)[\s\S]*mode = 'embedding'"):
        con.execute(f"CREATE MODEL e FROM GGUF '{tmp_path / 'e.gguf'}'")
    con.execute(f"CREATE MODEL e FROM GGUF '{tmp_path / 'e.gguf'}' PREDICT v USING mode = 'embedding'")


def make_export(folder: Path, kind: str, **about: Any) -> Path:
    """The folder with the description that EXPORT MODEL writes."""
    digests = {f.name: f"sha256:{sha256(f.read_bytes()).hexdigest()}" for f in folder.iterdir() if f.is_file()}
    given = {
        "format_version": 1,
        "format": kind,
        "model": "ft",
        "version": 2,
        "base": None,
        "predict": "reply",
        "outputs": None,
        "prompt_template": "Q: {{question}}",
        "system": "You count.",
        "model_options": {"dtype": "float32"},
        "training_options": {"r": 4, "stop": [" END"]},
        "query": "SELECT * FROM theirs",
        "row_count": 7,
        "data_digest": "abc",
        "scores": [],
        "files": digests,
        **about,
    }
    (folder / "sqlft.json").write_text(json.dumps(given))
    return folder


def test_an_export_comes_in_as_it_was(
    con: sqlft.Connection, tiny: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """Template, system message, output, options, what training ended answers with; its query is shown and not run."""
    folder = make_export(Path(shutil.copytree(adapters["plain"], tmp_path / "x")), "peft", base=str(tiny))
    con.execute(f"CREATE MODEL m FROM EXPORT '{folder}'")
    row = describe(con, "m")
    assert (row["SYSTEM"], row["PREDICT"], row["INPUTS"]) == ("You count.", "reply", ["question"])
    details = json.loads(row["DETAILS"])
    assert (details["stop"], details["imported"]["query"]) == ([" END"], "SELECT * FROM theirs")
    assert (row["ROWS"], row["DATA_DIGEST"]) == (7, "abc")
    with pytest.raises(SqlftError, match="never trained"):
        con.execute("RETRAIN m")
    con.execute(f"CREATE MODEL n FROM EXPORT '{folder}' PREDICT a USING prompt_template = '{{{{z}}}}', system = 'Hm.'")
    row = describe(con, "n")
    assert (row["SYSTEM"], row["PREDICT"], row["INPUTS"]) == ("Hm.", "a", ["z"])


def read_outputs(con: sqlft.Connection, name: str) -> Any:
    """The form of a model's answers, as the catalog keeps it."""
    return con.session.catalog.model(ModelKey(name)).outputs


def test_an_export_keeps_its_types(
    con: sqlft.Connection, tiny: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """The very schema that training taught."""
    con.execute(f"CREATE MODEL t PREDICT (n INTEGER NOT NULL, s VARCHAR) USING engine = 'local', base = '{tiny}'")
    outputs = read_outputs(con, "t")
    folder = Path(shutil.copytree(adapters["plain"], tmp_path / "x"))
    make_export(folder, "peft", base=str(tiny), predict="n", outputs=outputs)
    con.execute(f"CREATE MODEL m FROM EXPORT '{folder}'")
    assert read_outputs(con, "m") == outputs
    con.execute(f"CREATE MODEL u FROM EXPORT '{folder}' PREDICT answer")
    assert read_outputs(con, "u") is None


def test_a_merged_export_is_a_base(con: sqlft.Connection, tiny: Path, tmp_path: Path) -> None:
    """As a folder, and as GGUF; each stays where it is."""
    merged = make_export(Path(shutil.copytree(tiny, tmp_path / "merged")), "merged", prompt_template="{{content}}")
    con.execute(f"CREATE MODEL m FROM EXPORT '{merged}' PREDICT answer USING system = NULL")
    con.execute(f"CREATE MODEL b PREDICT answer USING engine = 'local', base = '{tiny}', dtype = 'float32'")
    assert describe(con, "m")["BASE"] == str(merged)
    assert ask(con, "m") == ask(con, "b")
    (tmp_path / "gguf").mkdir()
    make_gguf(tiny, tmp_path / "gguf" / "model.gguf")
    made = make_export(tmp_path / "gguf", "ollama", prompt_template="{{content}}", model_options={})
    con.execute(f"CREATE MODEL g FROM EXPORT '{made}' PREDICT answer USING chat_template = $${CHATML}$$")
    assert describe(con, "g")["BASE"] == str(made / "model.gguf")
    assert ask(con, "g", "max_tokens = 4")


def test_a_changed_export_is_refused(
    con: sqlft.Connection, tiny: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """The error names the file; so of one that is missing, of a path that leads away, and of a newer format."""
    folder = make_export(Path(shutil.copytree(adapters["plain"], tmp_path / "x")), "peft", base=str(tiny))
    about = json.loads((folder / "sqlft.json").read_text())
    outside = {**about["files"], "../own.duckdb": "sha256:0"}
    for change, why in [
        (
            {"files": {**about["files"], "adapter_model.safetensors": "sha256:0"}},
            "adapter_model.safetensors was changed",
        ),
        ({"files": {**about["files"], "gone.txt": "sha256:0"}}, "gone.txt is missing"),
        ({"files": outside}, "own.duckdb is missing"),
        ({"files": {}}, "lists no files"),
        ({"format": "tar"}, "no model of the format 'tar'"),
        ({"format_version": 2}, "newer sqlft"),
        ({"predict": "n", "outputs": {"columns": 3}}, "its outputs are none"),
    ]:
        (folder / "sqlft.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(CatalogError, match=why):
            con.execute(f"CREATE MODEL m FROM EXPORT '{folder}'")
    with pytest.raises(CatalogError, match="is no export"):
        con.execute(f"CREATE MODEL m FROM EXPORT '{tiny}'")
    assert has_nothing(con)
