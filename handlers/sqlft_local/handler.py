"""Models on one's own machine, on transformers and peft."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sqlft.errors import NotSupported, OptionError, SqlftError
from sqlft.handler import (
    Artifact,
    Embedder,
    Estimate,
    ExportNotes,
    ExportRequest,
    Message,
    ModelSpec,
    Predictor,
    Progress,
    RenderedRow,
    ReportStage,
    Reranker,
    Trainer,
    TrainingSet,
)
from sqlft_local.base import hub, presets
from sqlft_local.base.chat_template import check_template
from sqlft_local.base.tokenization import Delimiters, resolve_inference_delimiters, resolve_training_delimiters
from sqlft_local.errors import explain_write_errors
from sqlft_local.gguf.base_file import is_gguf
from sqlft_local.options import (
    EXPORT_FORMATS,
    RESUME_OPTIONS,
    EngineOptions,
    ModelOptions,
    PredictOptions,
    TrainOptions,
)

if TYPE_CHECKING:
    from sqlft_local._types import JsonMapping
    from sqlft_local.base.tokenization import Renderer
    from sqlft_local.export.write import ExportedVersion
    from sqlft_local.train import speed
    from sqlft_local.train.loop import TrainingLoop


class Local(Trainer, Embedder, Reranker):
    """Trains LoRA adapters and asks models, base and tuned, in this process."""

    engine_options = EngineOptions
    model_options = ModelOptions
    predict_options = PredictOptions
    train_options = TrainOptions
    resume_options = RESUME_OPTIONS
    export_formats = EXPORT_FORMATS

    def __init__(self, options: object = None) -> None:
        super().__init__(options if isinstance(options, EngineOptions) else EngineOptions())

    @staticmethod
    def pull(name: str, progress: ReportStage) -> Path:
        """Get the base `name` and return its folder, in Hugging Face layout; progress(what, share done or None)."""
        return hub.pull(name, progress)

    @classmethod
    def diagnose(cls) -> JsonMapping:
        """The machine, and which presets it can train and ask; imports no torch."""
        from sqlft_local.estimate import training
        from sqlft_local.machine import detect_machine

        here = detect_machine()
        return {"machine": training.describe_machine(here), "bases": training.list_bases(here)}

    @classmethod
    def bases(cls) -> Mapping[str, str]:
        """The presets, with their size and whether they are on this machine."""
        return hub.describe_presets()

    def check(self, model: ModelSpec) -> None:
        """OptionError for a base that is no preset, hub id, folder of safetensors or GGUF file."""
        if is_gguf(model.base):
            from sqlft_local.predict import llama

            llama.check_gguf_file(Path(model.base).expanduser())
        else:
            hub.check_name(model.base)
        if template := _get_model_options(model).chat_template:
            check_template(template)

    def check_weights(self, model: ModelSpec, path: Path) -> Mapping[str, object]:
        """Whether an adapter of others is one of the base, as far as that is here, or what a base's file holds."""
        from sqlft_local.base import adapter, loading, weight_cache
        from sqlft_local.gguf import base_file

        if path.is_file():
            return base_file.describe(path, weight_cache.find_gguf_folder(path))
        if not (path / "adapter_config.json").exists():
            return {}
        adapter.check_readable(path)
        folder = hub.find_local_folder(model.base)
        if folder is None:
            unseen = "The base is not on this machine yet: whether the adapter fits it is seen when it is first asked."
            return {"remarks": [unseen]}
        loading.require_libraries("Checking an adapter", training=True)
        loading.check_adapter(folder, path)
        return {}

    def fetch(self, model: ModelSpec, report: ReportStage) -> None:
        """Download the base; a file of weights is here, and made ready as it is opened."""

        def show(what: str, share: float | None) -> None:
            hub.print_progress(what, share)
            report(what, share)

        if not is_gguf(model.base) and hub.find_local_folder(model.base) is None:
            hub.pull(model.base, show)

    def open(self, model: ModelSpec, artifact: Artifact | None, options: object) -> Predictor:
        """The base, or the base with the artifact's adapter; shared with every other predictor of it."""
        from sqlft_local.predict import choose

        options = options if isinstance(options, PredictOptions) else PredictOptions()
        delimiters = resolve_inference_delimiters(_get_model_options(model), artifact)
        options = replace(options, stop=list(dict.fromkeys((*(options.stop or ()), *delimiters.stop))) or None)
        if is_gguf(model.base) and artifact is None and choose.asks_file(options):
            return self._open_gguf(model, Path(model.base).expanduser(), options, delimiters)
        folder = self._pull_base(model.base)
        adapter = artifact.path if artifact else None
        backend = choose.choose_backend(model, options, folder, self.options.device, adapter)
        return self._backends[backend](self, model, folder, adapter, options, delimiters)

    def _pull_base(self, base: str) -> Path:
        """The base's folder; one that is made of a GGUF file has the file's tokens."""
        folder = hub.pull(base, hub.print_progress)
        if is_gguf(base):
            from sqlft_local import machine
            from sqlft_local.predict import llama

            llama.check_same_tokens(Path(base).expanduser(), folder, machine.resolve_threads(self.options.threads))
        return folder

    def _open_gguf(self, model: ModelSpec, file: Path, options: PredictOptions, delimiters: Delimiters) -> Predictor:
        """By llama.cpp, from the file of others itself."""
        from sqlft_local import machine
        from sqlft_local.base import config, weight_cache
        from sqlft_local.base.tokenization import Renderer
        from sqlft_local.gguf import base_file
        from sqlft_local.predict import llama
        from sqlft_local.predict.common import DEFAULT_BATCH_SIZE

        llama.import_xllamacpp()
        home = weight_cache.find_gguf_folder(file)
        base_file.describe(file, home)
        settings = base_file.read_settings(file, home)
        given = _get_model_options(model)
        context = config.limit_context(settings["context_length"] or config.DEFAULT_CONTEXT, given.context_length)
        threads, gpu = machine.resolve_threads(self.options.threads), self.options.device != "cpu"
        plan = llama.LlamaSettings(file, options.batch_size or DEFAULT_BATCH_SIZE, threads, gpu=gpu)
        engine, release = llama.acquire_runtime(plan, context + 1, str(file))
        try:
            tokenizer = base_file.GgufTokenizer(settings, engine.call)
            renderer = Renderer(tokenizer, tokenizer.stop_ids, given.chat_template, options.thinking)
            renderer = renderer.with_delimiters(delimiters)
        except BaseException:
            release()
            raise
        return llama.LlamaPredictor(engine, release, None, renderer, context, options, model.schema)

    def _open_with_transformers(
        self, model: ModelSpec, folder: Path, adapter: Path | None, options: PredictOptions, delimiters: Delimiters
    ) -> Predictor:
        from sqlft_local.base import loading
        from sqlft_local.predict import choose

        loading.require_libraries("Asking a local model")
        from sqlft_local.predict.torch_predictor import TorchPredictor

        self._use_threads()
        given = _get_model_options(model)
        dtype = choose.choose_dtype(options, given, folder, self.options.device)
        given = replace(given, dtype=dtype, thinking=options.thinking)
        loaded, release = loading.acquire_model(folder, given, self.options.device, adapter, delimiters)
        if loaded.obstacle is None:
            return TorchPredictor(loaded, options, release)
        from sqlft_local.predict.generate import GeneratePredictor

        return GeneratePredictor(loaded, options, release)

    def _open_with_llama(
        self, model: ModelSpec, folder: Path, adapter: Path | None, options: PredictOptions, delimiters: Delimiters
    ) -> Predictor:
        from sqlft_local import machine
        from sqlft_local.base import config, weight_cache
        from sqlft_local.predict import choose, llama
        from sqlft_local.predict.common import DEFAULT_BATCH_SIZE
        from sqlft_local.predict.llama import LlamaPredictor

        llama.import_xllamacpp()
        given = _get_model_options(model)
        kind = choose.choose_gguf_type(options, given, folder)
        found = weight_cache.prepare_gguf_files(
            folder, adapter, kind, choose.should_merge_adapter(options, folder), hub.print_progress
        )
        renderer = _load_renderer(found.home, model, options, delimiters)
        context = config.read_context(config.read_config(folder), given.context_length)
        threads = machine.resolve_threads(self.options.threads)
        gpu = self.options.device != "cpu"
        plan = llama.LlamaSettings(
            found.model, options.batch_size or DEFAULT_BATCH_SIZE, threads, exact=kind == "f32", gpu=gpu
        )
        engine, release = llama.acquire_runtime(plan, context + 1, str(folder))
        return LlamaPredictor(engine, release, found.adapter, renderer, context, options, model.schema)

    def _open_with_openvino(
        self, model: ModelSpec, folder: Path, adapter: Path | None, options: PredictOptions, delimiters: Delimiters
    ) -> Predictor:
        from sqlft_local import machine
        from sqlft_local.base import config, weight_cache
        from sqlft_local.predict import openvino

        openvino.import_openvino()
        given = _get_model_options(model)
        home, target = weight_cache.prepare_openvino_folder(folder, adapter, hub.print_progress)
        renderer = _load_renderer(home, model, options, delimiters)
        about, threads = config.read_config(folder), machine.resolve_threads(self.options.threads)
        context = config.read_context(about, given.context_length)
        runtime, release = openvino.acquire_runtime(target, threads, str(folder), config.read_shape(about), context)
        return openvino.OpenVinoPredictor(runtime, release, renderer, context, options, model.schema)

    _backends: ClassVar[dict[str, Callable[..., Predictor]]] = {
        "transformers": _open_with_transformers,
        "llama.cpp": _open_with_llama,
        "openvino": _open_with_openvino,
    }

    def unload(self, model: ModelSpec, artifact: Artifact | None) -> bool:
        """Free what is kept of the base and this version of it; True if there was something."""
        from sqlft_local.model_cache import MODEL_CACHE

        found = [str(f) for f in (hub.find_local_folder(model.base), Path(model.base).expanduser()) if f is not None]
        return MODEL_CACHE.unload(lambda key: isinstance(key, tuple) and key[1] in found)

    def train(
        self,
        model: ModelSpec,
        start: Artifact | None,
        data: TrainingSet,
        options: object,
        workdir: Path,
        report: Callable[[Progress], None],
    ) -> Artifact:
        """LoRA training; goes on from a checkpoint in `workdir`, and from the adapter of `start`."""
        from sqlft_local.base import loading
        from sqlft_local.machine import detect_machine

        began = time.monotonic()
        loading.require_libraries("Training", training=True)
        from sqlft_local.train import loop, speed

        self._use_threads()
        options = self.resolve_options(model, options)
        report(Progress(loop.find_latest_step(workdir / loop.CHECKPOINT_FOLDER)))
        asked = time.monotonic()
        folder = self._pull_base(model.base)
        began += time.monotonic() - asked  # a download says nothing of the next training
        learnt: list[tuple[speed.Kind, speed.Speed, float]] = []
        made = self._train_adapter(model, folder, start, data, options, workdir, report, learnt)
        gc.collect()
        loop.trim_heap()
        self._prepare_weights(model, folder, made)
        for kind, found, seconds in learnt:
            around = time.monotonic() - began - seconds
            speed.keep(kind, replace(found, around=around), hub.bases_folder(), detect_machine().processor)
        return made

    def _train_adapter(
        self,
        model: ModelSpec,
        folder: Path,
        start: Artifact | None,
        data: TrainingSet,
        options: TrainOptions,
        workdir: Path,
        report: Callable[[Progress], None],
        learnt: list[tuple[speed.Kind, speed.Speed, float]],
    ) -> Artifact:
        """Keeps nothing of the base in memory; `learnt` gets what later estimates go by, and the steps' seconds."""
        from sqlft_local.base import loading
        from sqlft_local.train import loop, parallel

        given, first = _get_model_options(model), start.path if start else None
        with parallel.start_workers(options.num_processes, folder, given, self.options, options, first) as workers:
            loaded = loading.load_base(folder, given, self.options.device, training=True)
            delimiters = resolve_training_delimiters(options, given, start)
            return loop.train(
                replace(loaded, renderer=loaded.renderer.with_delimiters(delimiters)),
                hub.get_hub_id(model.base),
                options,
                (options.learning_rate or 0.0) * options.learning_rate_multiplier,
                data,
                first,
                workdir,
                report,
                workers,
                lambda training: learnt.extend(self._measure_speed(training)),
            )

    def _measure_speed(self, made: TrainingLoop) -> Iterator[tuple[speed.Kind, speed.Speed, float]]:
        """The speed of this training, if it had the machine to itself, and the seconds of its steps and validations."""
        from sqlft_local.machine import detect_machine
        from sqlft_local.train import speed
        from sqlft_local.train.loop import KNOWN_SECONDS

        waited = made.contention.share if made.contention is not None and made.loaded.device.type == "cpu" else 0.0
        if made.workers is not None or waited > speed.BUSY:
            return
        with suppress(Exception):  # what was trained is whole without it
            kind, operations, passes, seconds = made.work()
            kind = replace(kind, threads=self.options.threads or 0)
            folder, processor = hub.bases_folder(), detect_machine().processor
            if seconds >= KNOWN_SECONDS:
                before = speed.known(kind, folder, processor)
                yield kind, speed.of_steps(kind, before, operations, passes, seconds), made.seconds

    def _prepare_weights(self, model: ModelSpec, folder: Path, made: Artifact) -> None:
        """Make the file that will be asked, so that the first question does not wait for it."""
        from sqlft_local.base import weight_cache
        from sqlft_local.predict import choose

        options = PredictOptions()
        try:
            backend = choose.choose_backend(model, options, folder, self.options.device, made.path)
            if backend == "transformers" and not choose.runs_on_gpu(self.options.device):
                given = _get_model_options(model)
                weight_cache.prepare_weights(folder, choose.choose_dtype(options, given, folder, self.options.device))
            elif backend == "openvino":
                weight_cache.prepare_openvino_folder(folder, made.path, lambda what, share: None)
            elif backend == "llama.cpp":
                kind = choose.choose_gguf_type(options, _get_model_options(model), folder)
                weight_cache.prepare_gguf_files(
                    folder, made.path, kind, choose.should_merge_adapter(options, folder), lambda what, share: None
                )
        except SqlftError:
            return  # what was trained is whole; who asks it first gets the error

    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[Sequence[float]]:
        """A vector a text: a sentence-transformers folder or hub id, any other base by its mean, or a GGUF file."""
        from sqlft_local.predict import embed

        if artifact is not None:
            raise NotSupported("A trained version makes no embeddings.", "Ask the model's version 1.")
        base = Path(model.base).expanduser()
        if not is_gguf(model.base):
            base = hub.pull(model.base, hub.print_progress)
        return embed.embed(base, _get_model_options(model), self.options.device, self.options.threads, texts)

    def embedding_prefixes(self, model: ModelSpec) -> tuple[str, str]:
        """As the base's folder or its preset says."""
        from sqlft_local.predict import embed

        return embed.read_prefixes(model.base, None if is_gguf(model.base) else hub.find_local_folder(model.base))

    def rerank(self, pairs: Iterable[tuple[str, str]], model: ModelSpec, artifact: Artifact | None) -> Iterator[float]:
        """A score a pair, by a cross-encoder: a folder or hub id with a sequence classification head."""
        from sqlft_local.predict import embed

        if artifact is not None or is_gguf(model.base):
            raise NotSupported(
                "A trained version and a GGUF file do not rerank.",
                "Take a folder or a hub id of a cross-encoder, and ask the model's version 1.",
            )
        self._use_threads()
        folder = hub.pull(model.base, hub.print_progress)
        return embed.rerank(folder, _get_model_options(model), self.options.device, pairs)

    def score(
        self, conversations: Sequence[Sequence[Message]], model: ModelSpec, artifact: Artifact | None
    ) -> list[tuple[float, int]]:
        """(log-probability, tokens) of the last message of each."""
        from sqlft_local.base import loading

        loading.require_libraries("Scoring answers")
        from sqlft_local.predict import score

        self._use_threads()
        adapter = artifact.path if artifact else None
        given = replace(_get_model_options(model), thinking="off")  # an answer is scored by itself
        delimiters = resolve_inference_delimiters(given, artifact)
        return score.score(
            loading.get_shared_model(model.base, given, self.options.device, adapter, delimiters), conversations
        )

    def check_export(self, model: ModelSpec, artifact: Artifact | None, request: ExportRequest) -> None:
        """NotSupported for an adapter of a base, and for what llama.cpp or merging does not take."""
        from sqlft_local.base import loading
        from sqlft_local.export import write

        if model.base.endswith(".gguf"):
            raise NotSupported("The base is a GGUF file already.", "Copy that file.")
        loading.require_libraries("An export")
        folder = hub.find_local_folder(model.base)
        version = _describe_export(model, artifact, request, folder) if folder is not None else None
        write.check_export(version, request, artifact is not None)

    def export(
        self, model: ModelSpec, artifact: Artifact | None, request: ExportRequest, folder: Path, report: ReportStage
    ) -> ExportNotes:
        """The adapter for PEFT, merged weights for transformers, a GGUF file, or one with a Modelfile."""
        from sqlft_local.export import write

        version = _describe_export(model, artifact, request, hub.pull(model.base, report))
        write.check_export(version, request, artifact is not None)
        with explain_write_errors():
            return write.write_export(version, folder, report)

    def open_to_compare(
        self, model: ModelSpec, artifact: Artifact | None, request: ExportRequest, folder: Path | None, options: object
    ) -> Predictor:
        """The version or its export; in float32 where the base is small."""
        from sqlft_local import machine
        from sqlft_local.base import loading
        from sqlft_local.predict import choose

        loading.require_libraries("VERIFY")
        options = options if isinstance(options, PredictOptions) else PredictOptions()
        base = hub.pull(model.base, hub.print_progress)
        small = choose.is_small(base)
        if folder is None:
            exact = replace(options, backend="transformers", precision="f32" if small else "auto", grammar=None)
            return self.open(replace(model, schema=None), artifact, exact)
        from sqlft_local.export import compare

        version = _describe_export(model, artifact, request, base)
        threads = machine.resolve_threads(self.options.threads)
        return compare.open_export(version, folder, options, self.options.device, threads, small)

    def max_row_tokens(self, model: ModelSpec, options: object) -> int | None:
        """What `max_length` says, or where it says nothing 2048 tokens; never more than the context."""
        from sqlft_local.estimate import training

        base = training.describe_base(model.base, hub.find_local_folder(model.base), _get_model_options(model))
        return training.find_max_row_tokens(base, options if isinstance(options, TrainOptions) else TrainOptions())

    def resolve_options(self, model: ModelSpec, options: object) -> TrainOptions:
        """With learning rate, batch size and layers that suit the base where none were given."""
        given = options if isinstance(options, TrainOptions) else TrainOptions()
        return presets.resolve_options(given, model.base, hub.find_local_folder(model.base))

    def estimate(self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: object) -> Estimate | None:
        """From the base's shape, the rows as the trainer makes them, and how fast this machine is."""
        from sqlft_local.estimate import training
        from sqlft_local.machine import detect_machine

        given = _get_model_options(model)
        base = training.describe_base(model.base, hub.find_local_folder(model.base), given)
        options = self.resolve_options(model, options)
        if base is None:
            return training.estimate_without_config(model.base, options, data.train)
        own, delimiters = self.options, resolve_training_delimiters(options, given, start)
        kept = hub.bases_folder()
        return training.estimate(
            base, given, options, data, detect_machine(), own.device, own.threads, kept, delimiters
        )

    def render_rows(
        self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: object
    ) -> list[RenderedRow] | None:
        """The rows' text in the base's chat format; None while the base is not on this machine."""
        folder = hub.find_local_folder(model.base)
        if folder is None:
            return None
        from sqlft_local.base import config, loading
        from sqlft_local.train import rows

        loading.require_libraries("Showing the text of training rows")
        given, options = _get_model_options(model), self.resolve_options(model, options)
        renderer = loading.load_renderer(folder, given.chat_template, given.thinking).with_delimiters(
            resolve_training_delimiters(options, given, start)
        )
        context = config.read_context(config.read_config(folder), given.context_length)
        tokenized = rows.tokenize_rows(data.train, renderer, options, context)
        return [rows.show_row(row, renderer, options) for row in tokenized]

    def count_tokens(self, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
        """Tokens of each text; None while the base is not on this machine."""
        folder = hub.find_local_folder(model.base)
        if folder is None or not (folder / "tokenizer.json").exists():
            return None
        from sqlft_local.base.tokenization import load_tokenizer_json

        encoded = load_tokenizer_json(folder).encode_batch(list(texts), add_special_tokens=False)
        return [len(e.ids) for e in encoded]

    def count_prompt_tokens(self, conversations: Sequence[Sequence[Message]], model: ModelSpec) -> list[int] | None:
        """Tokens of each conversation in the base's chat format; None while the base is not on this machine."""
        folder = hub.find_local_folder(model.base)
        if folder is None or not (folder / "tokenizer.json").exists():
            return None
        from sqlft_local.base import loading

        given = _get_model_options(model)
        renderer = loading.load_renderer(folder, given.chat_template, given.thinking).with_delimiters(
            resolve_inference_delimiters(given, None)
        )
        return [len(renderer.prompt(messages)) for messages in conversations]

    def _use_threads(self) -> None:
        if self.options.threads:
            import torch

            torch.set_num_threads(self.options.threads)


def _load_renderer(home: Path, model: ModelSpec, options: PredictOptions, delimiters: Delimiters) -> Renderer:
    """Prompts for llama.cpp and OpenVINO: by the tokenizer that is kept beside their files, without transformers."""
    from sqlft_local.base.tokenization import ChatTokenizer, Renderer

    tokenizer, template = ChatTokenizer(home), _get_model_options(model).chat_template
    renderer = Renderer(tokenizer, tokenizer.stop_ids, template, options.thinking)
    if renderer.thinks and (model.schema is not None or options.grammar is not None):
        raise NotSupported(
            "Answers bound to a schema or a grammar begin at once: there is no room for thoughts before them.",
            "Use thinking = 'off', or ask for a text.",
        )
    return renderer.with_delimiters(delimiters)


def _describe_export(
    model: ModelSpec, artifact: Artifact | None, request: ExportRequest, base: Path
) -> ExportedVersion:
    from sqlft_local.export.write import ExportedVersion

    return ExportedVersion(model, _get_model_options(model), artifact, request, base)


def _get_model_options(model: ModelSpec) -> ModelOptions:
    if model.options is None or isinstance(model.options, ModelOptions):
        return model.options or ModelOptions()
    raise OptionError(
        f"The local engine got options of another kind: {model.options!r}.", "Pass an instance of ModelOptions."
    )
