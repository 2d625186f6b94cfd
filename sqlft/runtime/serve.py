"""`USING serve = 'engine'`: a version that was trained here, asked on a running server."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

from sqlft.catalog import secrets
from sqlft.errors import NotSupported
from sqlft.handler import Artifact
from sqlft.runtime.models import Resolved, engine_of, handler_of, spec_of
from sqlft.runtime.session import Session


def served(session: Session, resolved: Resolved, name: str) -> Resolved:
    """The version with the engine's handler in place of its own; NotSupported if that cannot be."""
    key, made = resolved.version.key, resolved.artifact
    if made is None or made.path is None:
        what = "is its base, untrained" if made is None else "lies at its provider"
        raise NotSupported(
            f"{key} {what}: there is no adapter of it that '{name}' could load.",
            "Leave serve out, or make a model of that engine: CREATE MODEL … USING engine = …",
        )
    engine = engine_of(session, name)
    handler = handler_of(session, engine)
    if not handler.takes_adapters:
        raise NotSupported(
            f"The engine '{name}' cannot load an adapter.",
            "A vLLM server can: CREATE ML_ENGINE … FROM vllm USING base_url = '…', then serve = that engine.",
        )
    spec = spec_of(type(handler), resolved.model.base, {}, f"Engine '{name}'", resolved.outputs.schema)
    asked = [resolved.digest, engine.handler, secrets.shown(engine.options)]
    digest = sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    called = f"{key.model.name}-{key.number}-{(resolved.version.artifact_digest or digest)[:8]}"
    artifact = Artifact(made.path, None, {**made.details, "serve_as": called})
    folder = resolved.spec.folder and resolved.spec.folder.with_name(engine.handler)
    return replace(
        resolved,
        handler_name=engine.handler,
        handler=handler,
        spec=replace(spec, folder=folder),
        artifact=artifact,
        digest=digest,
    )
