"""The conformance suite: what sqlft relies on in a handler.  Five lines test one::

    class TestMine(HandlerConformance):
        handler = Mine
        base = "tiny"
        predict_options = {"max_tokens": 8}
        train_options = {"n_epochs": 2}

pytest finds the inherited tests, and skips, with a reason, those for training, embedding and reranking where the
handler does not.  Needs no pytest to import.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar, get_origin, get_type_hints
from unittest import SkipTest

import pyarrow as pa

from sqlft.errors import Cancelled, NotSupported, OptionError
from sqlft.handler import (
    Artifact,
    Completion,
    CountsTokens,
    Delta,
    Embedder,
    ExportRequest,
    Exports,
    Handler,
    Message,
    ModelSpec,
    Notice,
    Predictor,
    Progress,
    Request,
    Reranker,
    RowError,
    Trainer,
    TrainingDetails,
    TrainingSet,
)
from sqlft.options import build_options, options_of

T = TypeVar("T")
HEAVY = ("torch", "transformers", "tensorflow", "jax", "vllm", "openai", "pandas")
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".so", ".py", ".pyc")
ODD_TEXTS = ("", " ", "naïve “quotes” 'and' \"more\"", "数据库 שלום 😀👩‍👩‍👧", "{{x}} ${y} %s \\n", "a\x00b\tc\r\nd")
CAPITALS = (
    "France Paris",
    "Japan Tokyo",
    "Peru Lima",
    "Kenya Nairobi",
    "Norway Oslo",
    "Egypt Cairo",
    "Cuba Havana",
    "Iraq Baghdad",
)


class HandlerConformance:
    """Inherit, say which `handler`, and what it needs to be asked; the rest has defaults."""

    handler: ClassVar[type[Handler]]
    base: ClassVar[str] = "base"
    engine_options: ClassVar[Mapping[str, object]] = {}
    model_options: ClassVar[Mapping[str, object]] = {}
    predict_options: ClassVar[Mapping[str, object]] = {}
    train_options: ClassVar[Mapping[str, object]] = {}
    window: ClassVar[int] = 64
    """The most requests it may have pulled and not answered."""
    bad_messages: ClassVar[Sequence[tuple[str, str]] | None] = None
    """(role, content) of a request that it cannot answer, if there is one."""
    long_text: ClassVar[str] = "many words " * 1000
    conversations: ClassVar[Sequence[Sequence[tuple[str, str]]]] = [
        [("user", f"The capital of {c.split()[0]}?"), ("assistant", c.split()[1])] for c in CAPITALS
    ]
    """What it trains on: enough for three steps at least."""
    patience: ClassVar[float] = 300.0
    """Seconds after which it counts as hung."""

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        handler = getattr(cls, "handler", Handler)
        for prefix, applies, reason in (
            ("test_training_", issubclass(handler, Trainer), f"{handler.__name__} is no Trainer"),
            ("test_embedding_", issubclass(handler, Embedder), f"{handler.__name__} is no Embedder"),
            ("test_reranking_", issubclass(handler, Reranker), f"{handler.__name__} is no Reranker"),
            ("test_export_", hasattr(handler, "export_formats"), f"{handler.__name__} exports nothing"),
            ("test_bad_", cls.bad_messages is not None, "no bad_messages are given"),
        ):
            for name in [n for n in vars(HandlerConformance) if n.startswith(prefix) and n not in vars(cls)]:
                setattr(cls, name, getattr(HandlerConformance, name) if applies else _make_skipped(reason))

    # what a subclass may use in tests of its own

    def made(self) -> Handler:
        """The handler, constructed as sqlft does."""
        return self.handler(build_options(self.handler.engine_options, self.engine_options, "the engine"))

    def spec(self) -> ModelSpec:
        """The model that is asked."""
        return ModelSpec(self.base, build_options(self.handler.model_options, self.model_options, "the model"))

    def opened(self, artifact: Artifact | None = None) -> Predictor:
        """A predictor of the base, or of an artifact."""
        options = build_options(self.handler.predict_options, self.predict_options, "the query")
        return self.made().open(self.spec(), artifact, options)

    def ask(self, *contents: str, artifact: Artifact | None = None) -> list[Completion]:
        """Answers to texts, whose ids are 0, 1, 2 …, ordered by id."""
        return self._ask(_make_requests(contents), artifact)

    # every handler

    def test_constructs_without_heavy_imports_or_network(self) -> None:
        """Constructing is cheap: SHOW MODELS must not wait for torch."""
        where = inspect.getsourcefile(self.handler) or ""
        arguments = [
            self.handler.__module__,
            where,
            self.handler.__qualname__,
            json.dumps(dict(self.engine_options)),
            *HEAVY,
        ]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([sys.executable, "-c", _CONSTRUCT, *arguments], env=env, capture_output=True, text=True)
        assert done.returncode == 0, (
            f"constructing {self.handler.__name__} failed, or is not cheap:\n{done.stderr[-2000:]}"
        )

    def test_checks_the_model(self) -> None:
        """`check` has nothing against a model that it can make."""
        self._within(lambda: self.made().check(self.spec()))

    def test_names_its_bases(self) -> None:
        """For completion: names with a line on each, without a network; none where every name will do."""
        bases = self._within(self.handler.bases)
        texts = [text for pair in bases.items() for text in pair] if isinstance(bases, Mapping) else [None]
        assert all(isinstance(text, str) for text in texts), f"bases gives names with what each is, not {bases!r}"

    def test_notices_say_what_to_take_instead(self) -> None:
        """Before it is asked or trained, without a network: nothing, or what ends and what goes on."""
        for training in (False, True):
            ask_for_notice = partial(self.made().notice, self.spec(), None, training=training)
            notice = self._within(ask_for_notice)
            assert notice is None or (isinstance(notice, Notice) and notice.text and notice.next_step), (
                f"notice gives None or a Notice with a text and a next step, not {notice!r}"
            )

    def test_answers_every_request_once(self) -> None:
        """In any order, each with its id, a text or an error."""
        requests = [Request(i, (Message("user", f"Say {i}"),)) for i in (100, 3, 7, 2, 10**9, 0, 41, 5)]
        answers = self._ask(requests)
        assert sorted(c.id for c in answers) == sorted(r.id for r in requests), "one answer a request, with its id"

    def test_answers_conversations(self) -> None:
        """A system message and earlier turns are part of what is asked."""
        turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "And then?")]
        [answer] = self._ask([Request(1, tuple(Message(*t) for t in turns))])
        assert answer.text is not None, f"a conversation of four messages got no answer: {answer.error}"

    def test_answers_nothing_to_nothing(self) -> None:
        """No requests, no completions."""
        assert self._ask([]) == []

    def test_answers_odd_and_long_texts(self) -> None:
        """Whatever is in a row, it gets an answer or an error of its own."""
        texts = [*ODD_TEXTS, self.long_text, "still here"]
        answers = self.ask(*texts)
        assert [c.id for c in answers] == list(range(len(texts)))
        assert answers[-1].text is not None, f"an odd row spoiled a good one: {answers[-1].error}"

    def test_pulls_no_further_than_its_window(self) -> None:
        """A LIMIT must not cost one call per row of the table."""
        pulled = 0

        def endless() -> Iterator[Request]:
            nonlocal pulled
            while pulled < 100 * self.window:
                pulled += 1
                yield Request(pulled, (Message("user", f"Say {pulled}"),))

        def first() -> None:
            predictor = self.opened()
            try:
                completions = iter(predictor.predict(endless()))
                next(completions)
                assert pulled <= self.window, (
                    f"{pulled} requests were pulled for the first answer; the window is {self.window}"
                )
                _close(completions)
            finally:
                predictor.close()

        self._within(first)

    def test_pulls_requests_in_the_thread_that_steps_it(self) -> None:
        """The core's iterator of requests is stepped by nobody else."""
        pulled_in: set[int] = set()

        def watched() -> Iterator[Request]:
            for request in _make_requests(["a", "b", "c"]):
                pulled_in.add(threading.get_ident())
                yield request

        def step() -> int:
            predictor = self.opened()
            try:
                for _ in predictor.predict(watched()):
                    pass
            finally:
                predictor.close()
            return threading.get_ident()

        stepped_in = {self._within(step)}
        assert pulled_in == stepped_in, (
            "requests were pulled in another thread than the one that steps predict: pull there, and hand them over"
        )

    def test_closes_early_and_twice(self) -> None:
        """A query may stop in the middle; afterwards the handler serves on."""

        def stop() -> None:
            predictor = self.opened()
            completions = iter(predictor.predict(iter(_make_requests(["a", "b", "c"]))))
            next(completions)
            _close(completions)
            predictor.close()
            predictor.close()

        self._within(stop)
        self._within(lambda: self.opened().close())
        assert len(self.ask("again")) == 1

    def test_two_may_be_open_at_once(self) -> None:
        """One query may ask two versions, each in turn."""

        def both() -> list[list[Completion | Delta | Progress]]:
            predictors = [self.opened(), self.opened()]
            answers = [iter(p.predict(iter(_make_requests(["a", "b"])))) for p in predictors]
            answers_of_each = [[next(a)] for a in answers]
            for collected, rest in zip(answers_of_each, answers, strict=True):
                collected.extend(rest)
            for p in predictors:
                p.close()
            return answers_of_each

        assert [sorted(c.id for c in events if not isinstance(c, Progress)) for events in self._within(both)] == [
            [0, 1],
            [0, 1],
        ]

    def test_counts_tokens_or_does_not(self) -> None:
        """None, or one count a text."""
        texts = ["one", "one two three four five six", ""]
        handler = self.made()
        counts = self._within(
            lambda: handler.count_tokens(texts, self.spec()) if isinstance(handler, CountsTokens) else None
        )
        assert counts is None or len(counts) == len(texts), "one count a text"
        assert counts is None or (all(isinstance(n, int) and n >= 0 for n in counts) and counts[1] > counts[0])

    def test_refuses_unknown_options(self) -> None:
        """Options are declared, so that a slip is answered with the name that was meant."""
        for what, cls in self._option_classes():
            assert cls is not dict, f"{what} is dict, which takes everything: declare a dataclass"
            names = list(options_of(cls))
            slip = f"{names[0]}x" if names else "unheard_of"
            refusal = _find_refusal(cls, slip, what)
            assert refusal, f"{what} takes the unknown option {slip}"
            assert not names or "Did you mean" in refusal, f"{what}: no suggestion for {slip}"

    def test_documents_its_options(self) -> None:
        """The documentation's tables are made from them."""
        bare = [
            f"{what}.{o.name}" for what, cls in self._option_classes() for o in options_of(cls).values() if not o.doc
        ]
        assert not bare, (
            f"options without a line of documentation, Annotated[type, 'what it is for']: {', '.join(bare)}"
        )

    # with bad_messages

    def test_bad_rows_are_errors_of_their_own(self) -> None:
        """Neither a NULL nor an empty text, and the rows around it are answered."""
        bad = Request(1, tuple(Message(*m) for m in self.bad_messages or ()))
        answers = {c.id: c for c in self._ask([*_make_requests(["a"]), bad, Request(2, (Message("user", "b"),))])}
        assert answers[1].error is not None, f"the bad row got the text {answers[1].text!r} and no error"
        assert answers[1].text is None
        assert answers[0].text is not None
        assert answers[2].text is not None

    # trainers

    def test_training_makes_an_artifact_that_answers_elsewhere(self, tmp_path: Path) -> None:
        """Reported steps rise; the files are safe, and answer from another folder when the workdir is gone."""
        artifact, reports = self._trained(tmp_path / "work")
        _check_reports(reports)
        _check_files(artifact, tmp_path / "work")
        _check_details(artifact)
        moved = _move_artifact(artifact, tmp_path / "work")
        [answer] = self.ask("The capital of Japan?", artifact=moved)
        assert answer.text is not None, f"what was trained does not answer: {answer.error}"

    def test_training_goes_on_from_an_artifact(self, tmp_path: Path) -> None:
        """FINETUNE of a version that was trained."""
        first = _move_artifact(self._trained(tmp_path / "first")[0], tmp_path / "first")
        second, _ = self._trained(tmp_path / "second", start=first)
        [answer] = self.ask("The capital of Japan?", artifact=second)
        assert answer.text is not None, f"what was trained does not answer: {answer.error}"

    def test_training_stops_when_told_and_resumes(self, tmp_path: Path) -> None:
        """Cancelled passes through; the same workdir goes on from there."""
        whole = self._trained(tmp_path / "whole")[1]
        later = [p.step for p in whole if p.step > whole[0].step]
        assert later, "it reports one step only: give train_options and conversations with which it takes three or more"
        try:
            self._trained(tmp_path / "work", stop_at=later[0])
        except Cancelled:
            pass
        else:
            raise AssertionError("report raised Cancelled, and train went on to the end")
        artifact, reports = self._trained(tmp_path / "work")
        resumed = "trained again on the workdir of a cancelled training it"
        assert reports, f"{resumed} reports nothing"
        assert reports[0].step > whole[0].step, f"{resumed} starts at step {reports[0].step} as from scratch"
        assert len(reports) < len(whole), f"{resumed} takes {len(reports)} reports, from scratch {len(whole)}"
        _check_files(artifact, tmp_path / "work")

    # embedders

    def test_export_of_the_base_answers_by_itself(self, tmp_path: Path) -> None:
        """In the first format that takes an untrained base; what is refused says what to do."""
        handler, spec = self.made(), self.spec()
        assert isinstance(handler, Exports), "it has export_formats, and not all methods of sqlft.handler.Exports"
        request = self._choose_export(handler)
        if request is None:
            return
        shares: list[float | None] = []
        notes = handler.export(spec, None, request, tmp_path, lambda what, share: shares.append(share))
        assert any(tmp_path.iterdir()), f"{request.format} wrote no files"
        assert notes.base, f"{request.format} does not say of which base it is"
        assert notes.usage, f"{request.format} does not say how it is asked"
        assert all(share is None or 0 <= share <= 1 for share in shares)
        options = build_options(self.handler.predict_options, self.predict_options, "the query")
        for folder in (None, tmp_path):
            predictor = handler.open_to_compare(spec, None, request, folder, options)
            [answer] = [e for e in predictor.predict(_make_requests(["one"])) if isinstance(e, Completion)]
            predictor.close()
            assert answer.text is not None, f"what {request.format} wrote does not answer: {answer.error}"

    def _choose_export(self, handler: Exports) -> ExportRequest | None:
        """The first format that takes the base; None where a trained version is needed for each."""
        for name, kinds in handler.export_formats.items():
            request = ExportRequest("base-1", name, next(iter(kinds), None))
            try:
                handler.check_export(self.spec(), None, request)
            except NotSupported as e:
                if not e.next_step:
                    raise AssertionError(f"the refusal of {name} has no next step: {e}") from e
                continue
            return request
        return None

    def test_embedding_gives_a_vector_a_text(self) -> None:
        """In order, all of one length, of finite numbers."""
        handler = self.made()
        assert isinstance(handler, Embedder)
        given = self._within(lambda: list(handler.embed(iter(["a", "b", "", "a"]), self.spec(), None)))
        vectors = [list(v) for v in given if not isinstance(v, RowError)]
        assert len(vectors) == len(given) == 4
        assert len({len(v) for v in vectors}) == 1
        assert all(math.isfinite(x) for v in vectors for x in v)
        assert all(math.isclose(x, y, abs_tol=1e-3) for x, y in zip(vectors[0], vectors[3], strict=True))

    def test_reranking_gives_a_score_a_pair(self) -> None:
        """In order, between 0 and 1, the same for the same pair; or the base cannot, with a next step."""
        handler = self.made()
        assert isinstance(handler, Reranker)
        pairs = [("a", "b"), ("a", ""), ("long", "text " * 2000), ("a", "b")]
        try:
            scores = self._within(lambda: list(handler.rerank(iter(pairs), self.spec(), None)))
        except NotSupported as e:
            if not e.next_step:
                raise AssertionError(f"the refusal has no next step: {e}") from e
            return
        assert len(scores) == len(pairs)
        assert all(0 <= score <= 1 for score in scores)
        assert math.isclose(scores[0], scores[3], abs_tol=1e-3)

    def _option_classes(self) -> list[tuple[str, type]]:
        kinds = ["engine_options", "model_options", "predict_options"]
        kinds += ["train_options"] if issubclass(self.handler, Trainer) else []
        return [(kind, getattr(self.handler, kind)) for kind in kinds]

    def _ask(self, requests: Sequence[Request], artifact: Artifact | None = None) -> list[Completion]:
        def answers() -> list[Completion]:
            predictor = self.opened(artifact)
            try:
                return [c for c in predictor.predict(iter(requests)) if not isinstance(c, (Delta, Progress))]
            finally:
                predictor.close()

        completions = self._within(answers)
        for completion in completions:
            _check_completion(completion)
        return sorted(completions, key=lambda c: c.id)

    def _trained(
        self, workdir: Path, start: Artifact | None = None, stop_at: int | None = None
    ) -> tuple[Artifact, list[Progress]]:
        handler = self.made()
        assert isinstance(handler, Trainer)
        workdir.mkdir(exist_ok=True)
        table = _make_table(self.conversations)
        data = TrainingSet(table, table.slice(0, 2))
        options = build_options(handler.train_options, self.train_options, "the training")
        reports: list[Progress] = []

        def report(progress: Progress) -> None:
            reports.append(progress)
            if stop_at is not None and progress.step >= stop_at:
                raise Cancelled("The conformance suite stops it.", "Train again on the same workdir.")

        return self._within(lambda: handler.train(self.spec(), start, data, options, workdir, report)), reports

    def _within(self, work: Callable[[], T]) -> T:
        """Run as sqlft does, in another thread; a handler that hangs fails instead of holding everything up."""
        done: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

        def run() -> None:
            try:
                done.put((work(), None))
            except BaseException as e:
                done.put((None, e))

        threading.Thread(target=run, daemon=True).start()
        try:
            result, error = done.get(timeout=self.patience)
        except queue.Empty:
            raise AssertionError(f"{self.handler.__name__} hangs: nothing within {self.patience:g} seconds") from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


_CONSTRUCT = """
import importlib, importlib.util, json, socket, sys
name, path, qualname, options, *heavy = sys.argv[1:]
def refuse(*a, **k):
    raise AssertionError("the constructor uses the network")
socket.socket.connect = socket.getaddrinfo = refuse
try:
    module = importlib.import_module(name)
except ImportError:
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
from sqlft.options import build_options
for part in qualname.split("."):
    module = getattr(module, part)
module(build_options(module.engine_options, json.loads(options), "the engine"))
loaded = [n for n in heavy if n in sys.modules]
assert not loaded, f"the constructor or the module imports {', '.join(loaded)}: import them where they are needed"
"""


def _make_skipped(reason: str) -> Callable[..., None]:
    def skipped(self: HandlerConformance, tmp_path: object = None) -> None:
        raise SkipTest(reason)

    return skipped


def _make_requests(contents: Iterable[str]) -> list[Request]:
    return [Request(i, (Message("user", text),)) for i, text in enumerate(contents)]


def _find_refusal(cls: type, name: str, what: str) -> str:
    try:
        build_options(cls, {name: 1}, what)
    except OptionError as e:
        return e.message
    return ""


def _close(completions: Iterator[Completion | Delta | Progress]) -> None:
    if isinstance(completions, Generator):
        completions.close()


def _check_completion(completion: Completion) -> None:
    assert isinstance(completion, Completion), f"a {type(completion).__name__} where a Completion belongs"
    if completion.error is None:
        assert isinstance(completion.text, str), f"request {completion.id} has neither a text nor an error"
    else:
        assert isinstance(completion.error, RowError), "an error is a RowError"
        assert completion.error.code, "an error has a code"
        assert completion.error.message, "an error has a message"
        assert completion.text is None, f"request {completion.id} has a text and an error"


def _check_reports(reports: Sequence[Progress]) -> None:
    steps = [p.step for p in reports]
    assert steps, "training reports no progress"
    assert steps == sorted(steps), f"reported steps go back: {steps}"
    assert all(p.total_steps is None or p.step <= p.total_steps for p in reports), "a step beyond total_steps"
    odd = {n: v for p in reports for n, v in p.metrics.items() if not isinstance(v, (int, float)) or math.isnan(v)}
    assert not odd, f"metrics that are no numbers: {odd}"


def _check_files(artifact: Artifact, workdir: Path) -> None:
    assert artifact.path or artifact.remote_id, "an artifact is a folder or a name that the provider knows"
    if artifact.path is None:
        return
    assert artifact.path.is_dir(), f"the artifact is no folder: {artifact.path}"
    assert artifact.path.resolve().is_relative_to(workdir.resolve()), "the artifact must be below the workdir"
    files = [f for f in artifact.path.rglob("*") if not f.is_dir()]
    assert files, "the artifact's folder is empty"
    for file in files:
        unsafe = file.is_symlink() or file.suffix in UNSAFE_SUFFIXES or _is_pickle(file)
        assert not unsafe, (
            f"{file.name} may run code when it is loaded, or leads elsewhere; keep tensors as safetensors"
        )


def _check_details(artifact: Artifact) -> None:
    for name, kind in get_type_hints(TrainingDetails).items():
        value, takes = artifact.details.get(name), get_origin(kind) or kind
        takes = (int, float) if takes is float else takes
        assert value is None or isinstance(value, takes), f"details['{name}'] is {value!r}: TrainingDetails says {kind}"


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(2)
    return start in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or zipfile.is_zipfile(file)


def _move_artifact(artifact: Artifact, workdir: Path) -> Artifact:
    """As publishing does: the artifact's folder elsewhere, all else of the workdir gone."""
    if artifact.path is None:
        return artifact
    to = Path(tempfile.mkdtemp(dir=workdir.parent)) / "artifact"
    shutil.move(artifact.path, to)
    shutil.rmtree(workdir, ignore_errors=True)
    return Artifact(to, artifact.remote_id, json.loads(json.dumps(dict(artifact.details))))


def _make_table(conversations: Sequence[Sequence[tuple[str, str]]]) -> pa.Table:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    rows = [[{"role": role, "content": content} for role, content in c] for c in conversations]
    return pa.table({"messages": pa.array(rows, kind)})
