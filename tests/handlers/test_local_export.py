"""EXPORT MODEL: what others open answers as the version does, and the folder is there whole or not at all."""

from __future__ import annotations

import json
import resource
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sqlft_local import Local
from sqlft_local.base.tokenization import Delimiters, Renderer, load_transformers_tokenizer
from sqlft_local.export.templates import build_chat_template, find_turn_texts
from sqlft_local.options import EngineOptions, ModelOptions, PredictOptions
from transformers import AutoModelForCausalLM, AutoTokenizer

import sqlft
from sqlft.catalog.files import compute_digest
from sqlft.catalog.records import ModelKey
from sqlft.errors import (
    AlreadyExists,
    CatalogError,
    DataError,
    HandlerError,
    NotSupported,
    OptionError,
    ProviderError,
    SqlftError,
)
from sqlft.handler import Artifact, ExportRequest, Message, ModelSpec, Request
from sqlft.session import Tick

FORMATS = ["peft", "merged", "gguf", "ollama"]


@pytest.fixture(autouse=True)
def _own_bases(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted files go below the tests' folder, and statements are answered without OpenVINO."""
    monkeypatch.setenv("SQLFT_BACKENDS", "transformers, llama.cpp")
    monkeypatch.setenv("SQLFT_BASES", str(tmp_path_factory.getbasetemp() / "bases"))


class TunedModel:
    """A connection with a model `m` whose version 2 is an adapter, what it warned of, and how far it said it is."""

    def __init__(self, base: Path, adapter: Path, folder: Path, options: str = "") -> None:
        self.warnings: list[str] = []
        self.ticks: list[Tick] = []
        self.on_tick: Callable[[Tick], None] = self.ticks.append
        self.con = sqlft.connect(
            warn=self.warnings.append, progress=lambda tick: self.on_tick(tick), catalog=str(folder / "catalog")
        )
        self.con.execute(
            "CREATE TABLE t AS SELECT 'How many of ' || i AS q, 'SELECT ' || i AS answer FROM range(6) x(i)"
        )
        self.con.execute(
            f"CREATE MODEL m PREDICT answer USING engine = 'local', base = '{base}', max_tokens = 12, "
            f"prompt_template = 'Say {{{{q}}}}'{options}"
        )
        self.con.session.catalog.new_version(
            ModelKey("m"),
            status="complete",
            query="SELECT q, answer FROM t",
            row_count=6,
            data_digest="0f" * 32,
            options={"r": 4},
            artifact_path=adapter,
            artifact_digest=compute_digest(adapter),
        )

    def export(self, folder: Path, options: str, name: str = "m") -> dict[str, Any]:
        """The row that the statement gives."""
        relation = self.con.execute(f"EXPORT MODEL {name} TO ? ({options})", [str(folder)])
        return dict(zip([d[0] for d in relation.description], relation.fetchall()[0], strict=True))


@pytest.fixture
def tuned(tiny: Path, tiny_adapter: Path, tmp_path: Path) -> Iterator[TunedModel]:
    """A tuned model of the tiny base, with a system message."""
    made = TunedModel(tiny, tiny_adapter, tmp_path, ", system = 'You say \"SQL\".'")
    yield made
    made.con.close()


def read_provenance(folder: Path) -> dict[str, Any]:
    """sqlft.json."""
    found: dict[str, Any] = json.loads((folder / "sqlft.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_answers_as_the_version_does(tuned: TunedModel, tmp_path: Path, name: str) -> None:
    """Opened by the means of those who use it, in exact numbers; with a card and digests, and nothing beside it."""
    out = tmp_path / "né w" / "it's"
    exact = ", QUANTIZATION 'f32'" if name in ("gguf", "ollama") else ""
    row = tuned.export(out, f"FORMAT {name}, VERIFY 4{exact}")
    assert (row["folder"], row["format"], row["verified"], row["same"], row["different"]) == (str(out), name, 4, 4, 0)
    about = read_provenance(out)
    files = {f.name: f.read_bytes() for f in out.iterdir()}
    assert row["files"] == sorted(files)
    assert row["bytes"] == sum(map(len, files.values()))
    assert about["files"] == {n: f"sha256:{sha256(b).hexdigest()}" for n, b in files.items() if n != "sqlft.json"}
    assert (about["model"], about["version"], about["predict"], about["system"]) == ("m", 2, "answer", 'You say "SQL".')
    assert (about["row_count"], about["query"], about["training_options"]) == (6, "SELECT q, answer FROM t", {"r": 4})
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: ")
    assert "4 answers are the same" in card
    assert [f.name for f in out.parent.iterdir()] == [out.name]
    assert not tuned.warnings
    assert any(tick.label.startswith("asking its export") for tick in tuned.ticks)


def test_peft_and_transformers_open_the_folders(tuned: TunedModel, tiny: Path, tmp_path: Path) -> None:
    """Without sqlft: the merged weights are what PEFT computes of the adapter."""
    tuned.export(tmp_path / "adapter", "FORMAT peft", "m.2")
    tuned.export(tmp_path / "merged", "FORMAT merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    ids = torch.tensor([tokenizer.encode("How many?")])
    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, with_adapter(ids).logits, rtol=1e-4, atol=1e-3)
        assert not torch.allclose(merged(ids).logits, AutoModelForCausalLM.from_pretrained(tiny)(ids).logits, atol=0.1)
    assert merged.generation_config.eos_token_id == [2]
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tiny
    )


def test_the_base_itself_is_exported_but_for_peft(tuned: TunedModel, tmp_path: Path) -> None:
    """Version 1; prompts are those of a later version's training."""
    assert tuned.export(tmp_path / "base", "VERIFY 2, FORMAT gguf, QUANTIZATION f32", "m.1")["same"] == 2
    with pytest.raises(NotSupported, match=r"the base itself(.|\n)*FORMAT merged"):
        tuned.export(tmp_path / "x", "FORMAT peft", "m.1")


@pytest.mark.parametrize("how", [{"use_dora": True}, {"rank_pattern": {"q_proj": 2}}], ids=str)
def test_adapters_that_only_peft_knows_are_merged_by_it(tiny: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    """For transformers and for llama.cpp."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **how)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    made = TunedModel(tiny, tmp_path / "adapter", tmp_path)
    for options in ("FORMAT merged", "FORMAT gguf, QUANTIZATION f32"):
        assert made.export(tmp_path / "out", f"{options}, OVERWRITE, VERIFY 3")["same"] == 3
    made.con.close()


def test_a_base_in_several_files_keeps_its_numbers(tiny: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    """Each file is copied, and the adapter added where a tensor stands; an export is a base itself."""
    base = tmp_path / "base"
    AutoTokenizer.from_pretrained(tiny).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    model.save_pretrained(base, max_shard_size="100KB")
    made = TunedModel(base, tiny_adapter, tmp_path)
    made.export(tmp_path / "out", "FORMAT merged")
    files = sorted(f.name for f in base.glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(f.name for f in (tmp_path / "out").glob("*.safetensors")) == files
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    wanted = PeftModel.from_pretrained(model, tiny_adapter).merge_and_unload()
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(dict(merged.state_dict()), dict(wanted.state_dict()), rtol=1e-2, atol=1e-3)
    made.con.execute(f"CREATE MODEL again PREDICT answer USING engine = 'local', base = '{tmp_path / 'out'}'")
    made.export(tmp_path / "twice", "FORMAT merged", "again")
    assert read_provenance(tmp_path / "twice")["model"] == "again"
    assert "sqlft.json" not in read_provenance(tmp_path / "twice")["files"]
    made.con.close()


def test_no_secret_leaves_with_an_export(tuned: TunedModel, tiny_adapter: Path, tmp_path: Path) -> None:
    """Neither from the query that gave the rows, nor a key in a prompt."""
    query = "SELECT q, answer FROM postgres_query('db', 'x', password = 'hunter2secret')"
    tuned.con.session.catalog.new_version(
        ModelKey("m"), status="complete", query=query, artifact_path=tiny_adapter, tag="sk-abcdefghij1234567890abcd"
    )
    tuned.con.execute("ALTER TABLE t RENAME TO sk")
    tuned.export(tmp_path / "out", "FORMAT peft")
    for name in ("sqlft.json", "README.md"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "hunter2secret" not in text
        assert "sk-abcdefghij" not in text
    assert "postgres_query" in read_provenance(tmp_path / "out")["query"]


def open_both(tiny: Path, adapter: Path, folder: Path) -> list[list[str | None]]:
    """What a version and its merged export in `folder` say to four prompts."""
    handler, request = Local(EngineOptions(device="cpu", threads=1)), ExportRequest("m-2", "merged")
    said = []
    for exported in (None, folder):
        predictor = handler.open_to_compare(
            ModelSpec(str(tiny), ModelOptions()), Artifact(adapter), request, exported, PredictOptions(max_tokens=12)
        )
        asked = [Request(i, (Message("user", f"How many of {i}?"),)) for i in range(4)]
        said.append([c.text for c in sorted(predictor.predict(asked), key=lambda c: c.id)])  # type: ignore[union-attr]
        predictor.close()
    return said


def test_a_wrong_chat_template_or_tokenizer_is_seen(
    tuned: TunedModel, tiny: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    """The export is asked with its own files."""
    out = tmp_path / "out"
    tuned.export(out, "FORMAT merged")
    version, export = open_both(tiny, tiny_adapter, out)
    assert version == export
    template = (out / "chat_template.jinja").read_text()
    (out / "chat_template.jinja").write_text(template.replace("<|im_start|>", "|"))
    version, export = open_both(tiny, tiny_adapter, out)
    assert version != export


def test_differences_are_shown_and_an_export_that_is_all_wrong_is_not_written(
    tuned: TunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here m.2 is asked, and its export is of another adapter's weights."""
    ask = Local.open_to_compare

    def ask_the_base(self: Local, model: Any, artifact: Any, request: Any, folder: Any, options: Any) -> Any:
        return ask(self, model, None if folder is None else artifact, request, folder, options)

    monkeypatch.setattr(Local, "open_to_compare", ask_the_base)
    with pytest.raises(HandlerError, match=r"answers otherwise than m\.2.*4 of 4 answers differ"):
        tuned.export(tmp_path / "out", "FORMAT merged, VERIFY 4")
    assert not (tmp_path / "out").exists()


def test_verify_takes_a_query_an_evaluation_or_says_that_there_is_nothing(tuned: TunedModel, tmp_path: Path) -> None:
    """The rows of the training, where its query still runs; then those of an evaluation."""
    row = tuned.export(tmp_path / "a", "FORMAT peft, VERIFY (SELECT 'x' || i AS Q FROM range(3) r(i))")
    assert row["same"] == 3
    with pytest.raises(DataError, match="no column for the input 'q'"):
        tuned.export(tmp_path / "b", "FORMAT peft, VERIFY (SELECT 1 AS p)")
    for wrong in ("-1", "'many'", "true", "1.5"):
        with pytest.raises(OptionError, match="VERIFY is a number of prompts or a query"):
            tuned.export(tmp_path / "b", f"FORMAT peft, VERIFY {wrong}")
    tuned.con.execute("ALTER TABLE t RENAME TO u")
    with pytest.raises(DataError, match=r"no prompts to verify m\.2(.|\n)*VERIFY \(SELECT q FROM"):
        tuned.export(tmp_path / "b", "FORMAT peft, VERIFY 2")
    tuned.con.execute(
        "EVALUATE MODEL m.2 ON (SELECT q, answer FROM u) USING metric = 'exact_match', backend = 'transformers'"
    )
    assert tuned.export(tmp_path / "b", "FORMAT peft, VERIFY 2")["same"] == 2
    assert read_provenance(tmp_path / "b")["scores"][0]["metric"] == "exact_match"
    assert "| exact_match |" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("FORMAT pefd", "no export format 'pefd'.* Did you mean 'peft'"),
        ("FORMAT peft, QUANTIZATION q8_0", r"no quantization 'q8_0'(.|\n)*use FORMAT gguf, ollama"),
        ("FORMAT gguf, QUANTIZATION q4_k_m", r"no quantization 'q4_k_m'(.|\n)*It has: f16, bf16, f32, q8_0"),
        ("FORMAT peft, OVERWRIT true", r"no option 'overwrit'\. Did you mean 'overwrite'"),
        ("FORMAT NULL, OVERWRITE 'maybe'", "overwrite"),
        ("PUSH_TO 'name'", "names no repository"),
        ("PUSH_TO 'owner/name'", r"needs a token(.|\n)*HF_TOKEN"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    tuned: TunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, error: str
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SqlftError, match=error):
        tuned.export(tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_only_an_export_is_ever_overwritten(tuned: TunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only where the statement says so; an empty folder is taken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "empty").mkdir()
    for folder, options, error in (("mine", "", "no export of a model"), ("mine/letter.txt", "", "is a file")):
        with pytest.raises(AlreadyExists, match=error):
            tuned.con.execute(f"EXPORT MODEL m TO '{folder}' (FORMAT peft, OVERWRITE true{options})")
    assert tuned.con.execute("EXPORT MODEL m TO '~/empty'").fetchall()[0][0] == str(tmp_path / "empty")
    with pytest.raises(AlreadyExists, match="OVERWRITE true"):
        tuned.con.execute("EXPORT MODEL m TO 'empty' USING format = 'peft'")
    assert tuned.con.execute("EXPORT MODEL m TO './empty' USING format = 'merged', overwrite = true").fetchone()
    assert read_provenance(tmp_path / "empty")["format"] == "merged"
    assert not (tmp_path / "empty" / "adapter_config.json").exists()
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    for wrong in ("/", "~nobody_is_called_so/a"):
        with pytest.raises(SqlftError, match=r"no folder"):
            tuned.con.execute(f"EXPORT MODEL m TO '{wrong}'")
    for nothing in (None, "", "a\0b", 3):
        with pytest.raises(OptionError, match="is no path"):
            tuned.con.execute("EXPORT MODEL m TO ?", [nothing])
    assert sorted(f.name for f in tmp_path.iterdir() if f.name.startswith(".")) == []


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["merged", "gguf"])
def test_a_full_disk_leaves_nothing(tuned: TunedModel, tmp_path: Path, name: str) -> None:
    """Neither a half folder, nor the earlier export gone."""
    out = tmp_path / "out"
    tuned.export(out, "FORMAT peft")
    with (
        limited_files(100_000),
        pytest.raises(CatalogError, match=r"left nothing there: (File too large|a file could not be written whole)"),
    ):
        tuned.export(out, f"FORMAT {name}, OVERWRITE")
    assert read_provenance(out)["format"] == "peft"
    assert not (tmp_path / ".out.unfinished").exists()


def test_ctrl_c_and_what_a_killed_process_left(tuned: TunedModel, tmp_path: Path) -> None:
    """Nothing is there after the one; the next export puts the other in order."""
    out = tmp_path / "out"

    def stop(tick: Tick) -> None:
        if "copying" in tick.label:
            raise KeyboardInterrupt

    tuned.on_tick = stop
    with pytest.raises(KeyboardInterrupt):
        tuned.export(out, "FORMAT merged")
    assert sorted(f.name for f in tmp_path.iterdir() if "out" in f.name) == []
    tuned.on_tick = tuned.ticks.append
    tuned.export(out, "FORMAT peft")
    left = tmp_path / ".out.unfinished"  # killed between the two renames of OVERWRITE
    (left / "files").mkdir(parents=True)
    (left / "files" / "half").write_text("of it")
    out.rename(left / "old")
    with pytest.raises(AlreadyExists, match="There is an export"):
        tuned.export(out, "FORMAT merged")
    assert read_provenance(out)["format"] == "peft"
    assert not left.exists()


def test_hosted_models_stay_with_their_provider(tmp_path: Path) -> None:
    """The error says who can."""
    with sqlft.connect(catalog=str(tmp_path / "catalog")) as con:
        con.execute("CREATE MODEL e PREDICT answer USING engine = 'echo'")
        with pytest.raises(NotSupported, match=r"no weights here(.|\n)*engine = 'local'"):
            con.execute("EXPORT MODEL e TO 'x'")


SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set told = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set told = false %}{% endif %}{% for m in rest %}"
    "{% if loop.first and told %}{% set content = '<<SYS>>\n' + told + '\n<</SYS>>\n\n' + m['content'] %}{% else %}"
    "{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content + ' [/INST]' }}{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
ASKED, TOLD = Message("user", 'How "many" {{x}}?'), Message("system", "Say\nSQL.")
ANSWERED = Message("assistant", "42")


@pytest.mark.parametrize("delimiters", [Delimiters(), Delimiters("\n###\n", (" END",))], ids=["plain", "delimiters"])
@pytest.mark.parametrize("template", [None, SMOLLM, LLAMA2, GEMMA, THINKING], ids=str)
def test_templates_of_others_render_what_training_rendered(
    model_maker: Callable[..., Path], template: str | None, delimiters: Delimiters
) -> None:
    """Jinja's by transformers, who knows no switches; Ollama's texts give the same."""
    tokenizer, stops = load_transformers_tokenizer(model_maker(template=template))
    renderer = Renderer(tokenizer, stops).with_delimiters(delimiters)
    exported = build_chat_template(renderer, system=True)
    turns = find_turn_texts(renderer, exported, True, "")
    conversations = [[ASKED], [ASKED, ANSWERED, ASKED]]
    conversations += [[TOLD, *messages] for messages in conversations]
    for messages in conversations:
        given: Any = [m._asdict() for m in messages]
        theirs = tokenizer.apply_chat_template(
            given, tokenize=False, add_generation_prompt=True, chat_template=exported
        )
        assert turns.render(messages) == theirs
        if template != THINKING or len(messages) < 3:
            assert theirs == renderer.prompt_text(messages)


def test_a_template_that_ollama_cannot_express_is_refused(model_maker: Callable[..., Path]) -> None:
    """Here the system message comes again with the last question."""
    template = (
        "{% for m in messages %}{{ m['role'] + ':' }}{% if loop.last and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] }}{% endif %}{{ m['content'] + '\n' }}{% endfor %}assistant:"
    )
    tokenizer, stops = load_transformers_tokenizer(model_maker(template=template))
    renderer = Renderer(tokenizer, stops)
    with pytest.raises(NotSupported, match=r"cannot be written as one of Ollama's(.|\n)*FORMAT gguf"):
        find_turn_texts(renderer, build_chat_template(renderer, True), True, "")


def test_a_modelfile_has_what_the_version_was_trained_with(tiny: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    """Template, system message, separator, every stop sequence."""
    made = TunedModel(tiny, tiny_adapter, tmp_path, ", system = 'Say SQL.', stop = [' END'], separator = ' ->'")
    made.export(tmp_path / "out", "FORMAT ollama, VERIFY 3")
    made.con.close()
    lines = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert lines.startswith('FROM ./m-2-f16.gguf\nTEMPLATE """{{- range $i, $m := .Messages }}\n')
    assert (
        r'{{ $m.Content }}{{ if eq (len (slice $.Messages $i)) 1 }}{{ " -><|im_end|>\n<|im_start|>assistant\n" }}'
        in lines
    )
    for line in ('SYSTEM """Say SQL."""', 'PARAMETER stop """ END"""', 'PARAMETER stop """<|im_end|>"""'):
        assert f"\n{line}\n" in lines
    assert "\nPARAMETER temperature 0\n" in lines
    assert "\nPARAMETER num_ctx 512\n" in lines


class FakeHub(BaseHTTPRequestHandler):
    """The hub's endpoints that making a repository and committing files to it need."""

    token = "hf_" + "t0k3n" * 4
    requests: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        """What the client is told: small files go into the commit itself."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append((self.path, body))
        if self.headers["Authorization"] != f"Bearer {self.token}":
            self._reply(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self._reply(200, {"url": f"http://{self.headers['Host']}/owner/name", "id": "owner/name"})
        elif "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            self._reply(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        else:
            url = f"http://{self.headers['Host']}/owner/name/commit/0a"
            self._reply(200, {"success": True, "commitOid": "0a" * 20, "commitUrl": url})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """A hub on this machine, where HF_ENDPOINT would lead, and its token in the environment."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", FakeHub.token)
    FakeHub.requests.clear()
    yield FakeHub
    server.shutdown()
    server.server_close()


def test_push_uploads_the_folder(
    tuned: TunedModel, tmp_path: Path, hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hub's own client; the repository is private; a token that is wrong leaves the folder, and is not shown."""
    out = tmp_path / "out"
    tuned.export(out, "FORMAT peft, PUSH_TO 'owner/name'")
    (create, about), *_, (commit, lines) = hub.requests
    assert create == "/api/repos/create"
    assert json.loads(about)["name"] == "name"
    assert json.loads(about).get("private") is True or json.loads(about).get("visibility") == "private"
    assert commit == "/api/models/owner/name/commit/main"
    committed = [json.loads(line) for line in lines.splitlines()]
    assert committed[0]["value"]["summary"] == "m.2, by sqlft"
    sent = {c["value"]["path"]: b64decode(c["value"]["content"]) for c in committed[1:]}
    assert sent == {f.name: f.read_bytes() for f in out.iterdir()}
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wr0ng" * 4)
    with pytest.raises(ProviderError, match=r"was not uploaded to owner/name(.|\n)*hf upload owner/name") as raised:
        tuned.export(out, "FORMAT peft, OVERWRITE, PUSH_TO 'owner/name', PRIVATE false")
    assert "wr0ng" not in str(raised.value)
    assert read_provenance(out)["format"] == "peft"
