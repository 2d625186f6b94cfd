"""The engine's own options; all others are those of the handler that it wraps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlft.handler import Delivery, Range, WrapperOptions


@dataclass(kw_only=True)
class RayOptions(WrapperOptions):
    """CREATE ML_ENGINE … FROM ray USING …"""

    address: Annotated[
        str,
        "the cluster: host:port; auto is the one that runs on this machine or that RAY_ADDRESS names; local makes one "
        "of this machine, which ends with this process",
        Delivery(),
    ] = "auto"
    actors: Annotated[
        int | None, "processes that answer; without it one per machine of the cluster", Delivery(), Range(1, 10_000)
    ] = None
    num_cpus: Annotated[
        float, "processor cores that Ray keeps for one, also the threads that PyTorch uses", Delivery(), Range(0)
    ] = 1.0
    num_gpus: Annotated[float, "GPUs that Ray keeps for one, parts of one too", Delivery(), Range(0)] = 0.0
    runtime_env: Annotated[
        dict[str, object] | None, 'what Ray installs or sets where an actor runs: {"pip": ["my-handler"]}', Delivery()
    ] = None
    keep_seconds: Annotated[
        float, "how long actors that nobody asks keep their models, and the cluster's cores", Delivery(), Range(0)
    ] = 300.0
