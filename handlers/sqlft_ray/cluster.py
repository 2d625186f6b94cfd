"""The way to Ray: connected once in a process, its nodes listed, its errors put into words.

Called by everything here that runs on the driver's machine.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlft.errors import HandlerError, HandlerNotInstalled, SqlftError, debug

if TYPE_CHECKING:
    from sqlft_ray.options import RayOptions

ActorHandle = Any
"""Of ray.remote: it makes its methods as it is made."""
ObjectRef = Any
CONNECT_SECONDS = 5.0
CURRENT_CLUSTER = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR", "/tmp"), "ray", "ray_current_cluster")
"""Where Ray writes down which cluster runs on this machine."""
START_HINT = (
    "Start one with: ray start --head (and on other machines: ray start --address=<head>:6379), or let this process "
    "have one of its own: CREATE ML_ENGINE … USING address = 'local'."
)
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "1000000",
}
"""What Ray reads as it is imported: no paragraphs on standard output about actors that are replaced, and a head that is
gone must not end this process, as it would after a minute."""
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
_lock = threading.Lock()
_connected_to: list[str] = []
"""The address of the one cluster that this process is connected to, and how engines name it."""


class Node(NamedTuple):
    """A machine of the cluster."""

    host: str
    resources: Mapping[str, float]


def connect(address: str) -> None:
    """Be connected to the cluster; a process has one at most.  HandlerError."""
    try:
        import ray
    except ImportError as e:
        raise HandlerNotInstalled(f"Ray is not installed here ({e}).", "Run: pip install 'sqlft[ray]'") from e

    with _lock:
        if ray.is_initialized() and is_head_gone():
            ray.shutdown()
        if ray.is_initialized():
            _check_same_cluster(address)
            return
        _connected_to.clear()
        _check_reachable(address)
        outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        # in a thread of its own: in the main one Ray would take SIGTERM from whoever trains here
        threading.Thread(target=_init, args=(address, outcome), name="sqlft-ray", daemon=True).start()
        if (error := outcome.get()) is not None:
            raise _explain_no_connection(address, error) from error
        _connected_to[:] = [ray.get_runtime_context().gcs_address, address]
        debug("ray: connected to %s", address)


def _init(address: str, outcome: queue.SimpleQueue[BaseException | None]) -> None:
    """Connect, and stay: a cluster of this process ends with the thread that started it."""
    import ray

    more: dict[str, object] = {}
    if address == "local":
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
        more = {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    try:
        ray.init(address, namespace="sqlft", log_to_driver=False, logging_level="ERROR", **more)
    except BaseException as e:
        outcome.put(e)
    else:
        outcome.put(None)
        threading.Event().wait()


def _check_same_cluster(address: str) -> None:
    import ray

    if not _connected_to:  # by whoever uses Ray here besides
        _connected_to.append(ray.get_runtime_context().gcs_address)
    if address not in ("auto", "local", *_connected_to):
        here = _connected_to[0]
        raise HandlerError(
            f"This process is connected to the Ray cluster at {here}, and can have one only.",
            f"Ask engines at {address} from another process, or give all the same address.",
        )


def _check_reachable(address: str) -> None:
    """Ray itself would try for a minute."""
    if address == "auto":
        known = CURRENT_CLUSTER.read_text().strip() if CURRENT_CLUSTER.exists() else ""
        address = os.environ.get("RAY_ADDRESS") or known or address
    if address.startswith("ray://"):
        raise HandlerError(
            "sqlft does not speak to Ray through a client's address (ray://).",
            "Run it on a machine of the cluster (ray start --address=…), and leave the address out.",
        )
    host, _, port = address.rpartition(":")
    if address in ("auto", "local"):
        return
    if not host or not port.isdigit():
        raise HandlerError(f"'{address}' is no address of a Ray cluster.", "Write host:port, 'auto' or 'local'.")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as e:
        raise HandlerError(f"There is no Ray cluster at {address}: {e}.", START_HINT) from e


def _explain_no_connection(address: str, error: BaseException) -> SqlftError:
    text = str(error)
    if isinstance(error, ConnectionError) and address == "auto":
        return HandlerError("No Ray cluster runs on this machine.", START_HINT)
    if "ersion mismatch" in text:
        lines = " ".join(line.strip() for line in text.splitlines() if line.strip())
        return HandlerError(
            f"The Ray cluster at {address} has other versions than this process. {lines}",
            "Install the same versions of ray and Python here and on all its machines.",
        )
    return HandlerError(f"Ray cannot be reached at {address}: {type(error).__name__}: {text[:500]}", START_HINT)


def list_nodes() -> list[Node]:
    """The machines that are up."""
    import ray

    return [Node(n["NodeManagerHostname"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


def check_room(options: RayOptions, nodes: Sequence[Node]) -> None:
    """HandlerError where no machine of the cluster has what one actor needs, however long one waits."""
    wanted = {"CPU": options.num_cpus, "GPU": options.num_gpus}
    if any(all(node.resources.get(kind, 0) >= n for kind, n in wanted.items()) for node in nodes):
        return
    has = "; ".join(
        f"{node.host}: {node.resources.get('CPU', 0):g} CPUs, {node.resources.get('GPU', 0):g} GPUs" for node in nodes
    )
    raise HandlerError(
        f"No machine of the cluster has {options.num_cpus:g} CPUs and {options.num_gpus:g} GPUs for an actor ({has}).",
        "Make the engine with a smaller num_cpus or num_gpus, or add a machine: ray start --address=…",
    )


def has_room(options: RayOptions) -> bool:
    """Whether the cluster has now, over all machines, what one actor needs."""
    import ray

    free = ray.available_resources()
    return bool(free.get("CPU", 0) >= options.num_cpus and free.get("GPU", 0) >= options.num_gpus)


def explain(error: BaseException) -> SqlftError:
    """An error of Ray's, or of what ran on a node, as one of ours."""
    from ray import exceptions

    if isinstance(error, exceptions.RayTaskError):
        cause = error.cause
        if isinstance(cause, SqlftError):
            return cause
        if isinstance(cause, exceptions.RayError):
            return explain(cause)
        if isinstance(cause, ModuleNotFoundError):
            return explain_missing_module(cause.name or str(cause), "A machine of the cluster")
        return HandlerError(
            f"On the cluster the handler failed: {type(cause).__name__}: {cause}", "Correct that, and run it again."
        )
    text = str(error)
    if isinstance(error, exceptions.RuntimeEnvSetupError):
        return HandlerError(f"The runtime_env cannot be set up: {text[:1000]}", "Correct the engine's runtime_env.")
    if isinstance(error, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError):
        return HandlerError(
            f"It does not fit into Ray's object store: {text[:500]}",
            "Start Ray with more: ray start --object-store-memory=<bytes>, or make room on its disk.",
        )
    if "No module named" in text:
        module = text.rpartition("No module named ")[2].split()[0].strip("'\"")
        return explain_missing_module(module, "A machine of the cluster")
    return HandlerError(f"Ray failed: {type(error).__name__}: {text[:1000]}", "Run it again; `ray status` says more.")


def explain_missing_module(module: str, where: str) -> HandlerNotInstalled:
    """The error for a node that lacks a package."""
    return HandlerNotInstalled(
        f"{where} lacks the package '{module}'.",
        "Install there what is installed here, or let Ray do it: CREATE ML_ENGINE … USING runtime_env = "
        '{"pip": ["sqlft[ray,local]"]}.',
    )


def is_head_gone() -> bool:
    """Whether the cluster's head does not answer any more."""

    with suppress(Exception):
        host, _, port = _connected_to[0].rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError:
            return True
    return False


def head_gone_error() -> HandlerError:
    """The error for a cluster that went while it worked."""
    return HandlerError(
        "The head of the Ray cluster does not answer any more.",
        "Start it again (ray start --head), then run this again: what was answered is kept.",
    )


def diagnose() -> dict[str, object]:
    """For `sqlft doctor`: the cluster that is up, without starting one."""
    if not ("RAY_ADDRESS" in os.environ or CURRENT_CLUSTER.exists()):
        return {}
    connect("auto")
    return {
        node.host: f"{node.resources.get('CPU', 0):g} CPUs, {node.resources.get('GPU', 0):g} GPUs, "
        f"{node.resources.get('memory', 0) / 1e9:.1f} GB for actors"
        for node in list_nodes()
    }
