"""Models on one's own machine, on transformers and peft."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sqlft.errors import NotSupported, OptionError, SqlftError
from sqlft.handler import (
    Artifact,
    Embedder,
    Estimate,
    Message,
    ModelSpec,
    Predictor,
    Progress,
    Trainer,
    TrainingSet,
)
from sqlft_local import bases, presets
from sqlft_local.bases import Report
from sqlft_local.marks import Marks, asked_with, taught_with
from sqlft_local.options import MAY_CHANGE, EngineOptions, ModelOptions, PredictOptions, TrainOptions

if TYPE_CHECKING:
    from sqlft_local.training import Training


class Local(Trainer, Embedder):
    """Trains LoRA adapters and asks models, base and tuned, in this process."""

    engine_options = EngineOptions
    model_options = ModelOptions
    predict_options = PredictOptions
    train_options = TrainOptions
    resume_options = MAY_CHANGE

    def __init__(self, options: Any = None) -> None:
        super().__init__(options if isinstance(options, EngineOptions) else EngineOptions())

    @staticmethod
    def pull(name: str, progress: Report) -> Path:
        """Get the base `name` and return its folder, in Hugging Face layout; progress(what, share done or None)."""
        return bases.pull(name, progress)

    @classmethod
    def checkup(cls) -> Mapping[str, Any]:
        """The machine, and which presets it can train and ask; imports no torch."""
        from sqlft_local import fitness
        from sqlft_local.hardware import machine

        here = machine()
        return {"machine": fitness.machine_facts(here), "bases": fitness.bases_that_fit(here)}

    def check(self, model: ModelSpec) -> None:
        """OptionError for a base that is no preset, hub id or folder of safetensors, or a GGUF for embeddings."""
        if model.base.endswith(".gguf") and Path(model.base).expanduser().is_file():
            from sqlft_local import llama

            llama.check_file(Path(model.base).expanduser())
        else:
            bases.check_name(model.base)
        if template := _model_options(model).chat_template:
            from sqlft_local import light

            light.check_template(template)

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        """The base, or the base with the artifact's adapter; shared with every other predictor of it."""
        from sqlft_local import backends

        options = options if isinstance(options, PredictOptions) else PredictOptions()
        if model.base.endswith(".gguf"):
            raise NotSupported(
                "A GGUF file makes embeddings only.",
                "Add mode = 'embedding', or use a folder in Hugging Face layout as the base.",
            )
        folder = bases.pull(model.base, bases.to_screen)
        adapter = artifact.path if artifact else None
        backend = backends.chosen(model, options, folder, self.options.device)
        marks = asked_with(_model_options(model), artifact)
        options = replace(options, stop=list(dict.fromkeys((*(options.stop or ()), *marks.stop))) or None)
        return self._backends[backend](self, model, folder, adapter, options, marks)

    def _on_transformers(
        self, model: ModelSpec, folder: Path, adapter: Path | None, options: PredictOptions, marks: Marks
    ) -> Predictor:
        from sqlft_local import backends, loading

        loading.require("Asking a local model")
        from sqlft_local.predictor import LocalPredictor

        self._use_threads()
        given = _model_options(model)
        given = replace(given, dtype=backends.dtype(options, given, folder, self.options.device))
        loaded, give_back = loading.taken(folder, given, self.options.device, adapter, marks)
        return LocalPredictor(loaded, options, give_back)

    def _on_llama(
        self, model: ModelSpec, folder: Path, adapter: Path | None, options: PredictOptions, marks: Marks
    ) -> Predictor:
        from sqlft_local import backends, converted, cores, light, llama
        from sqlft_local.llama_predictor import LlamaPredictor
        from sqlft_local.rendering import Renderer

        llama.require()
        given = _model_options(model)
        kind = backends.kind(options, given, folder)
        found = converted.files(folder, adapter, kind, backends.merged(options, folder), bases.to_screen)
        tokenizer = light.LightTokenizer(found.home)
        renderer = Renderer(tokenizer, tokenizer.stop_ids, given.chat_template).marked(marks)
        made_for = converted.context(folder)
        context = min(given.context_length or made_for, made_for)
        threads = cores.usable(self.options.threads)
        gpu = self.options.device != "cpu"
        plan = llama.Plan(found.model, options.batch_size, threads, exact=kind == "f32", gpu=gpu)
        engine, give_back = llama.taken(plan, context + 1, str(folder))
        return LlamaPredictor(engine, give_back, found.adapter, renderer, context, options, model.schema)

    def _on_vllm(
        self, model: ModelSpec, folder: Path, adapter: Path | None, options: PredictOptions, marks: Marks
    ) -> Predictor:
        from sqlft_local.vllm_predictor import opened

        return opened(folder, adapter, _model_options(model), options, model.schema, marks)

    _backends: ClassVar[dict[str, Callable[..., Predictor]]] = {
        "transformers": _on_transformers,
        "llama.cpp": _on_llama,
        "vllm": _on_vllm,
    }

    def unload(self, model: ModelSpec, artifact: Artifact | None) -> bool:
        """Free what is kept of the base and this version of it; True if there was something."""
        from sqlft_local.residents import RESIDENTS

        folder = Path(model.base).expanduser() if model.base.endswith(".gguf") else bases.local_folder(model.base)
        return folder is not None and RESIDENTS.unload(lambda key: isinstance(key, tuple) and key[1] == str(folder))

    def train(
        self,
        model: ModelSpec,
        start: Artifact | None,
        data: TrainingSet,
        options: Any,
        workdir: Path,
        report: Callable[[Progress], None],
    ) -> Artifact:
        """LoRA training; goes on from a checkpoint in `workdir`, and from the adapter of `start`."""
        from sqlft_local import loading

        loading.require("Training", training=True)
        from sqlft_local import checkpoints, processes, training

        self._use_threads()
        options = self.settled(model, options)
        report(Progress(checkpoints.reached(workdir / checkpoints.FOLDER)))
        folder = bases.pull(model.base, bases.to_screen)
        given, first = _model_options(model), start.path if start else None
        with processes.gathered(options.num_processes, folder, given, self.options, options, first) as team:
            loaded = loading.fresh(folder, given, self.options.device, training=True)
            marks = taught_with(options, given, start)
            made = training.train(
                replace(loaded, renderer=loaded.renderer.marked(marks)),
                presets.preset(model.base).hub_id or model.base,
                options,
                (options.learning_rate or 0.0) * options.learning_rate_multiplier,
                data,
                first,
                workdir,
                report,
                team,
                self._learn_speed,
            )
        self._prepare(model, folder, made)
        return made

    def _learn_speed(self, made: Training) -> None:
        """Later estimates go by the steps of this training, if it had the machine to itself."""
        from sqlft_local import speed
        from sqlft_local.hardware import machine
        from sqlft_local.training import KNOWN_SECONDS

        waited = made.contention.share if made.contention is not None and made.loaded.device.type == "cpu" else 0.0
        if made.team is not None or waited > speed.BUSY:
            return
        with suppress(Exception):  # what was trained is whole without it
            kind, operations, passes, seconds = made.work()
            kind = replace(kind, threads=self.options.threads or 0)
            folder, processor = bases.bases_folder(), machine().processor
            if seconds >= KNOWN_SECONDS:
                before = speed.known(kind, folder, processor)
                speed.keep(kind, speed.of_steps(kind, before, operations, passes, seconds), folder, processor)

    def _prepare(self, model: ModelSpec, folder: Path, made: Artifact) -> None:
        """Make the file that will be asked, so that the first question does not wait for it."""
        from sqlft_local import backends, converted

        options = PredictOptions()
        try:
            backend = backends.chosen(model, options, folder, self.options.device)
            if backend == "transformers" and not backends.on_gpu(self.options.device):
                given = _model_options(model)
                converted.weights(folder, backends.dtype(options, given, folder, self.options.device))
            elif backend == "llama.cpp":
                kind = backends.kind(options, _model_options(model), folder)
                converted.files(folder, made.path, kind, backends.merged(options, folder), lambda what, share: None)
        except SqlftError:
            return  # what was trained is whole; who asks it first is told what is wrong

    def embed(self, texts: Iterable[str], model: ModelSpec, artifact: Artifact | None) -> Iterator[Sequence[float]]:
        """A vector a text: a sentence-transformers folder or hub id, any other base by its mean, or a GGUF file."""
        from sqlft_local import embedding

        if artifact is not None:
            raise NotSupported("A trained version makes no embeddings.", "Ask the model's version 1.")
        base = Path(model.base).expanduser()
        if base.suffix != ".gguf":
            base = bases.pull(model.base, bases.to_screen)
        return embedding.embed(base, _model_options(model), self.options.device, self.options.threads, texts)

    def score(
        self, conversations: Sequence[Sequence[Message]], model: ModelSpec, artifact: Artifact | None
    ) -> list[tuple[float, int]]:
        """(log-probability, tokens) of the last message of each."""
        from sqlft_local import loading

        loading.require("Scoring answers")
        from sqlft_local import scoring

        self._use_threads()
        adapter = artifact.path if artifact else None
        given = _model_options(model)
        marks = asked_with(given, artifact)
        return scoring.score(loading.shared(model.base, given, self.options.device, adapter, marks), conversations)

    def longest_row(self, model: ModelSpec, options: Any) -> int | None:
        """What `max_length` says, or where it says nothing 2048 tokens; never more than the context."""
        from sqlft_local import estimate

        base = estimate.base_of(model.base, bases.local_folder(model.base), _model_options(model))
        return estimate.longest_row(base, options if isinstance(options, TrainOptions) else TrainOptions())

    def settled(self, model: ModelSpec, options: Any) -> TrainOptions:
        """With learning rate, batch size and layers of the base's preset where none were given."""
        return presets.settled(options if isinstance(options, TrainOptions) else TrainOptions(), model.base)

    def estimate(self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any) -> Estimate | None:
        """From the base's shape, the rows as the trainer makes them, and how fast this machine is."""
        from sqlft_local import estimate
        from sqlft_local.hardware import machine

        given = _model_options(model)
        base = estimate.base_of(model.base, bases.local_folder(model.base), given)
        if base is None:
            return None
        options = self.settled(model, options)
        own, marks = self.options, taught_with(options, given, start)
        kept = bases.bases_folder()
        return estimate.estimate(base, given, options, data, machine(), own.device, own.threads, kept, marks)

    def count_tokens(self, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
        """Tokens of each text; None while the base is not on this machine."""
        folder = bases.local_folder(model.base)
        if folder is None or not (folder / "tokenizer.json").exists():
            return None
        from sqlft_local.loading import fast_tokenizer

        encoded = fast_tokenizer(folder).encode_batch(list(texts), add_special_tokens=False)
        return [len(e.ids) for e in encoded]

    def count_prompts(self, conversations: Sequence[Sequence[Message]], model: ModelSpec) -> list[int] | None:
        """Tokens of each conversation in the base's chat format; None while the base is not on this machine."""
        folder = bases.local_folder(model.base)
        if folder is None or not (folder / "tokenizer.json").exists():
            return None
        from sqlft_local import loading

        given = _model_options(model)
        renderer = loading.renderer_of(folder, given.chat_template).marked(asked_with(given, None))
        return [len(renderer.prompt(messages)) for messages in conversations]

    def _use_threads(self) -> None:
        if self.options.threads:
            import torch

            torch.set_num_threads(self.options.threads)


def _model_options(model: ModelSpec) -> ModelOptions:
    if model.options is None or isinstance(model.options, ModelOptions):
        return model.options or ModelOptions()
    raise OptionError(
        f"The local engine got options of another kind: {model.options!r}.", "Pass an instance of ModelOptions."
    )
