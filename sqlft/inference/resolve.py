"""From a name to what can be asked: model, version, handler, artifact, prompt.

Here too: the same version on a running server (USING serve), and models that answer with vectors.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from sqlft import plugins
from sqlft.catalog import files
from sqlft.catalog.records import Engine, Model, ModelKey, Version
from sqlft.data import Outputs, Prompt
from sqlft.data.outputs import SCORE_TYPE, VECTOR_TYPE, encode_vector
from sqlft.errors import (
    CatalogError,
    NotFound,
    NotSupported,
    OptionError,
    ProviderError,
    SqlftError,
    did_you_mean,
)
from sqlft.handler import (
    Artifact,
    Completion,
    CountsTokens,
    Embedder,
    EmbeddingOptions,
    Handler,
    LoadsAdapters,
    ModelSpec,
    Notice,
    Predictor,
    Request,
    Reranker,
    RowError,
    Vector,
    WrapperOptions,
)
from sqlft.options import build_options, drop_options, order_lists, pick_answer_options, pick_options
from sqlft.secrets import references
from sqlft.session import EngineSettings, Session
from sqlft.sql.names import format_name


@dataclass(frozen=True)
class ResolvedVersion:
    """A version, ready to be asked or trained from."""

    model: Model
    version: Version
    handler_name: str
    handler: Handler
    spec: ModelSpec
    artifact: Artifact | None
    prompt: Prompt
    digest: str
    outputs: Outputs

    def predict_options(self, given: Mapping[str, object]) -> Any:
        """The handler's predict options: those of CREATE MODEL, overridden by the statement's."""
        cls = type(self.handler).predict_options
        return build_options(
            cls, {**references.reveal(pick_options(self.model.options, cls)), **given}, f"Model '{self.model.key.name}'"
        )


def find_engine(session: Session, name: str, model: Model | None = None) -> Engine:
    """The engine of that name, of the catalog that `model` is in; a handler's own name is an engine with defaults."""
    engines = {e.name.lower(): e for e in session.engines(model)}
    if name.lower() in engines:
        return engines[name.lower()]
    handler, defaults = plugins.resolve_handler_alias(name)
    if plugins.find_handler_entry(handler) is not None:
        return Engine(name.lower(), handler.lower(), dict(defaults))
    listed = "SHOW ML_ENGINES and SHOW HANDLERS list them; CREATE ML_ENGINE name FROM handler makes one."
    next_step = plugins.suggest_replacement(name)
    guess = "" if next_step else did_you_mean(name, [*engines, *plugins.find_entry_points()])
    raise NotFound(f"There is no engine or handler '{name}'.{guess}", next_step or listed)


def create_handler(session: Session, engine: Engine, overrides: Mapping[str, object] | None = None) -> Handler:
    """The engine's handler with its options, secrets in place; `overrides` are a model's own engine options."""
    cls = plugins.load_engine_class(engine.handler, engine.options)
    engine_options = {**engine.options, **pick_options(overrides or {}, cls.engine_options)}
    if engine_options.get("handler") != engine.options.get("handler") and issubclass(
        cls.engine_options, WrapperOptions
    ):
        raise OptionError(
            f"The engine '{engine.name}' wraps '{engine.options['handler']}', and a model does not change that.",
            f"Make another engine: CREATE ML_ENGINE name FROM {engine.handler} USING handler = …",
        )
    revealed = references.reveal(drop_options(engine_options, EngineSettings))
    try:
        return cls(build_options(cls.engine_options, revealed, f"Engine '{engine.name}'"))
    except SqlftError:
        raise
    except Exception as e:
        raise ProviderError(
            f"The handler '{engine.handler}' could not be made: {type(e).__name__}: {e}", "Check the engine's options."
        ) from e


def build_model_spec(
    cls: type[Handler], base: str, options: Mapping[str, object], what: str, schema: Mapping[str, object] | None = None
) -> ModelSpec:
    """The ModelSpec of USING's options; other classes' options among them are left out."""
    return ModelSpec(
        base,
        build_options(cls.model_options, references.reveal(pick_options(options, cls.model_options)), what),
        schema,
    )


def read_outputs(model: Model) -> Outputs:
    """What a model answers with."""
    return Outputs.from_catalog(model.predict, model.outputs)


def build_prompt(model: Model) -> Prompt:
    """The one rendering of a model's rows; the form of a typed answer is in its system message."""
    return Prompt(model.prompt_template, read_outputs(model).system(model.system))


def evaluation_of(model: Model, *numbers: int) -> str:
    """The statement that compares these versions, to be filled in with a query: `EVALUATE MODEL m.1, m.2 ON (…)`."""
    project = "" if model.key.project.lower() == "mindsdb" else f"{format_name(model.key.project)}."
    versions = ", ".join(f"{project}{format_name(model.key.name)}.{number}" for number in numbers)
    columns = [*Prompt(model.prompt_template).inputs, *read_outputs(model).names]
    return f"EVALUATE MODEL {versions} ON (SELECT {', '.join(map(format_name, columns))} FROM …)"


def find_model(session: Session, key: ModelKey | str) -> Model:
    """The model of that name; NotFound with the nearest name there is."""
    name, project = (key, None) if isinstance(key, str) else key
    model = session.find_model(name, project)
    if model is None:
        names = [str(m.key) if project else m.key.name for m in session.catalog.models()]
        what = name if project is None else str(ModelKey(name, project))
        raise NotFound(f"There is no model '{what}'.{did_you_mean(what, names)}", "SHOW MODELS lists them.")
    return model


def resolve(session: Session, key: ModelKey | str, number: int | None = None, *, ready: bool = True) -> ResolvedVersion:
    """Version `number` of a model (None: the active one); `ready` wants one that is complete, its files unchanged."""
    model = find_model(session, key)
    version = session.resolve_version(model, number)
    if ready and version.status != "complete":
        raise CatalogError(*_explain_not_ready(version))
    engine = find_engine(session, model.engine, model)
    handler = create_handler(session, engine, model.options)
    outputs = read_outputs(model)
    spec = build_model_spec(type(handler), model.base, model.options, f"Model '{model.key.name}'", outputs.schema)
    if not session.catalog.read_only:
        spec = dataclasses.replace(spec, folder=session.catalog.folder / "handlers" / engine.handler)
    artifact = _verify_artifact(version) if ready else None
    return ResolvedVersion(
        model,
        version,
        engine.handler,
        handler,
        spec,
        artifact,
        build_prompt(model),
        _digest_version(engine, type(handler).engine_options, model.options, spec, version),
        outputs,
    )


DELIMITER_OPTIONS = ("separator", "stop")
"""Options of a training that asking needs, too, and versions remember: what stands behind prompts and answers."""


def list_handlers(kind: type) -> list[str]:
    """Names of the installed handlers of a kind, a class or protocol; those that cannot be loaded are left out.

    >>> "echo" in list_handlers(Handler)
    True
    """
    names = []
    for name in plugins.find_entry_points():
        try:
            if issubclass(plugins.load_handler_class(name), kind):
                names.append(name)
        except SqlftError:
            continue
    return sorted(names)


def _verify_artifact(version: Version) -> Artifact | None:
    if version.artifact_path is not None:
        files.verify_artifact(version.artifact_path, version.artifact_digest)
    if version.artifact_path is None and version.remote_id is None:
        return None
    return Artifact(version.artifact_path, version.remote_id, version.details)


def _digest_version(engine: Engine, cls: type, own: Mapping[str, object], spec: ModelSpec, version: Version) -> str:
    identity = [
        plugins.find_answering_handler(engine.handler, engine.options),
        references.redact_options(
            pick_answer_options(drop_options({**engine.options, **pick_options(own, cls)}, EngineSettings), cls)
        ),
        spec.base,
        options_to_json(spec.options),
        version.artifact_digest,
        version.remote_id,
        *([spec.schema] if spec.schema is not None else []),
    ]
    return sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def options_to_json(options: object) -> dict[str, object]:
    """An options instance as JSON can hold it."""
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return dataclasses.asdict(options)
    return options if isinstance(options, dict) else dict(getattr(options, "__dict__", {}))


def _explain_not_ready(version: Version) -> tuple[str, str]:
    key = version.key
    steps = {
        "failed": f"DESCRIBE {key} tells more; ask an earlier version, or FINETUNE again.",
        "cancelled": f"RESUME MODEL {key} goes on with it.",
        "interrupted": f"RESUME MODEL {key} goes on with it.",
    }
    error = f": {version.error.rstrip('.')}" if version.error else ""
    return f"Version {key} cannot be asked, it is {version.status}{error}.", steps.get(
        version.status, f"Wait for it (DESCRIBE {key}), or ask an earlier version."
    )


def check_retirement(session: Session, handler: Handler, model: ModelSpec, artifact: Artifact | None = None) -> None:
    """Warn of what ends of a model that is to be asked; NotSupported where it has ended."""
    refuse_or_warn(session, handler.notice(model, artifact), "")


def refuse_or_warn(session: Session, notice: Notice | None, advice: str) -> None:
    if notice is not None and notice.is_refusal:
        raise NotSupported(notice.text, f"{notice.next_step}{advice}")
    if notice is not None:
        session.show_warning(f"{notice.text} {notice.next_step}")


def serve_with_engine(session: Session, resolved: ResolvedVersion, name: str) -> ResolvedVersion:
    """The version with the engine's handler in place of its own; NotSupported if that cannot be."""
    key, made = resolved.version.key, resolved.artifact
    if made is None or made.path is None:
        what = "is its base, untrained" if made is None else "lies at its provider"
        raise NotSupported(
            f"{key} {what}: there is no adapter of it that '{name}' could load.",
            "Leave serve out, or make a model of that engine: CREATE MODEL … USING engine = …",
        )
    engine = find_engine(session, name)
    handler = create_handler(session, engine)
    if not isinstance(handler, LoadsAdapters):
        raise NotSupported(
            f"The engine '{name}' cannot load an adapter.",
            "A vLLM server can: CREATE ML_ENGINE … FROM vllm USING base_url = '…', then serve = that engine.",
        )
    spec = build_model_spec(type(handler), resolved.model.base, {}, f"Engine '{name}'", resolved.outputs.schema)
    options = references.redact_options(order_lists(engine.options, type(handler).engine_options))
    identity = [resolved.digest, engine.handler, options]
    digest = sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    adapter_name = f"{key.model.name}-{key.number}-{(resolved.version.artifact_digest or digest)[:8]}"
    artifact = Artifact(made.path, None, {**made.details, "serve_as": adapter_name})
    folder = resolved.spec.folder and resolved.spec.folder.with_name(engine.handler)
    return replace(
        resolved,
        handler_name=engine.handler,
        handler=handler,
        spec=replace(spec, folder=folder),
        artifact=artifact,
        digest=digest,
    )


def count_tokens(handler: Handler, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
    """Tokens of each text; None where the handler cannot tell."""
    return handler.count_tokens(texts, model) if isinstance(handler, CountsTokens) else None


def find_number_type(cls: type[Handler], options: Mapping[str, object]) -> str | None:
    """The type of what a model gives with mode = 'embedding' or 'rerank'; NotSupported if the handler cannot.

    None for a model that answers.
    """
    chosen = build_options(EmbeddingOptions, pick_options(options, EmbeddingOptions), "This model")
    mode = (chosen.mode or "").lower()
    if mode not in NUMBER_MODES:
        return None
    kind, number_type, what = NUMBER_MODES[mode]
    if not issubclass(cls, kind):
        raise NotSupported(
            f"The handler '{cls.__name__}' {what}.", f"Use another engine, or leave mode = '{mode}' out."
        )
    return number_type


NUMBER_MODES: Mapping[str, tuple[type[Handler], str, str]] = {
    "embedding": (Embedder, VECTOR_TYPE, "makes no embeddings"),
    "rerank": (Reranker, SCORE_TYPE, "cannot tell how well a text answers a question"),
}
PAIR_SEPARATOR = "\u001e"
PAIR_TEMPLATE = f"{{{{question}}}}{PAIR_SEPARATOR}{{{{text}}}}"
"""The prompt of a model with mode = 'rerank', of which `RerankingPredictor` makes two texts again."""


class RerankingPredictor(Predictor):
    """Answers each request with the score of the pair in its last message."""

    def __init__(self, handler: Reranker, model: ModelSpec, artifact: Artifact | None) -> None:
        self._handler, self._model, self._artifact = handler, model, artifact

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Scores come in the order of the pairs."""
        waiting: deque[int] = deque()

        def pairs() -> Iterator[tuple[str, str]]:
            for request in requests:
                waiting.append(request.id)
                question, _, text = request.messages[-1].content.partition(PAIR_SEPARATOR)
                yield question, text

        for score in self._handler.rerank(pairs(), self._model, self._artifact):
            if not waiting:
                raise ProviderError(
                    "The handler gave more scores than it was given pairs.", "Tell those who wrote the handler."
                )
            yield Completion(waiting.popleft(), repr(float(score)))


class EmbeddingPredictor(Predictor):
    """Answers each request with the vector of its last message, as `encode_vector`."""

    def __init__(self, handler: Embedder, model: ModelSpec, artifact: Artifact | None) -> None:
        self._handler, self._model, self._artifact = handler, model, artifact

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Vectors come in the order of the texts."""
        waiting: deque[int] = deque()

        def texts() -> Iterator[str]:
            for request in requests:
                waiting.append(request.id)
                yield request.messages[-1].content

        for vector in self._handler.embed(texts(), self._model, self._artifact):
            if not waiting:
                raise ProviderError(
                    "The handler gave more vectors than it was given texts.", "Tell those who wrote the handler."
                )
            if isinstance(vector, RowError):
                yield Completion(waiting.popleft(), error=vector)
                continue
            tokens, cost = (vector.input_tokens, vector.cost_usd) if isinstance(vector, Vector) else (None, None)
            output = None if tokens is None else 0
            yield Completion(
                waiting.popleft(), encode_vector(vector), input_tokens=tokens, output_tokens=output, cost_usd=cost
            )
