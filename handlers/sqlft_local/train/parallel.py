"""A training in several processes, on a GPU each: this one leads, the others compute the gradients of their rows.

The leader has the order of the rows, the optimizer and the checkpoints.  In each step it sends the others their rows
and the matrices, and gets the sum of all gradients; so they keep nothing that a checkpoint would have to hold.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sqlft.errors import OptionError, ProviderError, SqlftError
from sqlft_local import machine
from sqlft_local.kernels.packing import Example
from sqlft_local.options import EngineOptions, ModelOptions, TrainOptions

if TYPE_CHECKING:
    from torch import Tensor

    from sqlft_local._types import JsonMapping, JsonObject, Work

WAIT_TIMEOUT = timedelta(hours=12)
"""So long one waits for the others, while the leader validates, say."""
POLL_SECONDS = 0.0005
"""Seconds between two looks at whether the others are done."""
EXIT_SECONDS = 5.0
"""Seconds for a process to end by itself."""
LOG_TAIL = 2000
"""Letters of its log that are shown of a process that died."""


class WorkerGroup:
    """The processes that follow; the leader calls `join` once, and `begin` and `finish` in each step."""

    def __init__(self, count: int, setup: JsonMapping, devices: Sequence[str], folder: Path) -> None:
        self.count = count
        self._trained: list[Tensor] = []
        self._store = folder / "store"
        self._device = devices[0]
        self._joined = False
        shared_setup = {**setup, "store": str(self._store), "count": count}
        self._workers = [
            _WorkerProcess(rank, {**shared_setup, "rank": rank, "device": devices[rank]}, folder)
            for rank in range(1, count)
        ]

    def join(self, trained: Sequence[Tensor], heartbeat: Callable[[], None]) -> None:
        """Wait until all have loaded the base; `heartbeat` is called meanwhile, and may raise to stop."""
        while not all(one.is_ready for one in self._workers):
            heartbeat()
            self._check()
            time.sleep(0.05)
        self._trained = list(trained)
        _init_process_group(self._store, 0, self.count, self._device)
        self._joined = True

    def begin(self, batch: Sequence[Example], seed: int, job: JsonMapping) -> list[Example]:
        """Send the others the matrices and their rows of a step; the rows that are left for the leader."""
        import torch.distributed as dist

        mine, *theirs = split_batch(batch, self.count)
        for one, part in zip(self._workers, theirs, strict=True):
            rows = [[list(e.ids), list(e.weights)] for e in part]
            one.send({"job": job, "seed": seed + 7_919 * one.rank, "rows": rows})
        self._wait(dist.broadcast(_flatten_parameters(self._trained), 0, async_op=True))
        return mine

    def finish(self, loss: float, tokens: int) -> tuple[float, int]:
        """Add the others' gradients, losses and tokens to the leader's."""
        import torch.distributed as dist

        flat = _flatten_gradients(self._trained, loss, tokens)
        self._wait(dist.reduce(flat, 0, async_op=True))
        for one, grad in _split_flat(flat, self._trained):
            one.grad = grad
        return flat[-2].item(), round(flat[-1].item())

    def close(self) -> None:
        """End the others, whatever they do."""
        for one in self._workers:
            one.close()
        if self._joined:
            import torch.distributed as dist

            self._joined = False
            dist.destroy_process_group()

    def _wait(self, work: Work) -> None:
        try:
            while not work.is_completed():
                self._check()
                time.sleep(POLL_SECONDS)
            work.wait()
        except RuntimeError as e:
            self._explain(e)

    def _explain(self, e: RuntimeError) -> None:
        """What one of the others says of itself explains more than that it cannot be reached."""
        until = time.monotonic() + EXIT_SECONDS
        while time.monotonic() < until:
            self._check()
            time.sleep(0.05)
        raise ProviderError(f"The processes of the training lost each other: {e}", "RESUME MODEL name.N.") from e

    def _check(self) -> None:
        for one in self._workers:
            one.check()


class _WorkerProcess:
    """One of the others, as the leader sees it."""

    def __init__(self, rank: int, setup: JsonMapping, folder: Path) -> None:
        self.rank = rank
        self.is_ready = False
        self._log = folder / f"{rank}.log"
        self._messages: queue.SimpleQueue[JsonObject] = queue.SimpleQueue()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                machine.module_command("sqlft_local.train.parallel"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=machine.child_environment(),
                start_new_session=True,  # Ctrl-C is the leader's to hear
            )
        self._listener = threading.Thread(target=self._listen, name=f"sqlft-process-{rank}", daemon=True)
        self._listener.start()
        self.send(setup)

    def send(self, what: JsonMapping) -> None:
        """One line of its standard input; that it is gone is for `check` to say."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return

    def check(self) -> None:
        """Raise if it failed."""
        over = self._process.poll() is not None
        if over:
            self._listener.join(EXIT_SECONDS)  # its last words may be on their way
        while not self._messages.empty():
            message = self._messages.get()
            if message.get("memory"):
                raise MemoryError(f"process {self.rank + 1}")
            if "error" in message:
                raise ProviderError(f"Process {self.rank + 1} of the training: {message['error']}", message["next"])
            self.is_ready |= bool(message.get("ready"))
        if over:
            words = self._log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:].strip()
            raise ProviderError(
                f"Process {self.rank + 1} of the training ended ({self._process.returncode}). {words}".strip(),
                "RESUME MODEL name.N goes on from the last checkpoint, if need be USING num_processes = 1.",
            )

    def close(self) -> None:
        """Let it see that nobody sends any more, and end it if it does not look."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._messages.put(json.loads(line))


@contextmanager
def start_workers(
    count: int, folder: Path, model: ModelOptions, engine: EngineOptions, options: TrainOptions, start: Path | None
) -> Iterator[WorkerGroup | None]:
    """The other `count` - 1 processes, which begin to load the base; none if this one trains alone."""
    if count == 1:
        yield None
        return
    import torch

    devices = assign_devices(count, engine.device)
    before = torch.get_num_threads()
    each = max(1, machine.resolve_threads(engine.threads) // count) if devices[0] == "cpu" else before
    setup = {
        "folder": str(folder),
        "model": asdict(model),
        "options": asdict(options),
        "start": str(start) if start else None,
        "threads": each,
    }
    torch.set_num_threads(each)
    with tempfile.TemporaryDirectory(prefix="sqlft-") as shared:
        workers = WorkerGroup(count, setup, devices, Path(shared))
        try:
            yield workers
        finally:
            workers.close()
            torch.set_num_threads(before)


def assign_devices(count: int, device: str) -> list[str]:
    """The device of each process, the leader's first; OptionError if there are too few."""
    import torch
    import torch.distributed as dist

    from sqlft_local.base import loading

    first = loading.resolve_device(device)
    kind, _, number = first.partition(":")
    if kind not in ("cpu", "cuda") or not dist.is_available():
        raise OptionError(f"num_processes = {count} does not work on {first}.", "Leave out num_processes.")
    if dist.is_initialized():
        raise OptionError(
            f"num_processes = {count} is not possible while this program's processes work together already.",
            "Wait for the training in several processes that runs, or leave out num_processes.",
        )
    if kind == "cpu":
        return ["cpu"] * count
    there = torch.cuda.device_count()
    if there < count:
        raise OptionError(f"num_processes = {count} needs as many GPUs; there are {there}.", f"Say {there} at most.")
    own = int(number or torch.cuda.current_device())
    return [f"cuda:{(own + i) % there}" for i in range(count)]


def split_batch(batch: Sequence[Example], count: int) -> list[list[Example]]:
    """The batch in `count` parts of about as many tokens; some are empty where there are too few rows."""
    made: list[list[Example]] = [[] for _ in range(count)]
    sizes = [0] * count
    for e in sorted(batch, key=lambda e: -len(e.ids)):
        least = sizes.index(min(sizes))
        made[least].append(e)
        sizes[least] += len(e.ids)
    return made


def _init_process_group(store: Path, rank: int, count: int, device: str) -> None:
    import torch
    import torch.distributed as dist

    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    elif sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's name may lead nowhere
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=store.as_uri(), rank=rank, world_size=count, timeout=WAIT_TIMEOUT
    )


def _flatten_parameters(trained: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat([one.detach().reshape(-1) for one in trained])


def _flatten_gradients(trained: Sequence[Tensor], loss: float, tokens: int) -> Tensor:
    """All gradients in one row, nothing where there is none, and at its end the loss and the tokens."""
    import torch

    parts = [(torch.zeros_like(one) if one.grad is None else one.grad).reshape(-1) for one in trained]
    return torch.cat([*parts, parts[0].new_tensor([loss, float(tokens)])])


def run_worker(setup: JsonMapping, jobs: Iterator[JsonObject], send: Callable[[JsonObject], None]) -> None:
    """Be one of the others: load the base, then compute gradients for whatever rows come."""
    import torch
    import torch.distributed as dist

    from sqlft_local.base import loading
    from sqlft_local.kernels import fused
    from sqlft_local.kernels.batching import is_packed
    from sqlft_local.train import lora, step

    loading.require_libraries("Training", training=True)
    torch.set_num_threads(setup["threads"])
    options = TrainOptions(**setup["options"])
    loaded = loading.load_base(Path(setup["folder"]), ModelOptions(**setup["model"]), setup["device"], training=True)
    if is_packed(loaded.model):
        fused.fuse_modules(loaded.model)
    matrices = lora.attach(loaded.model, options, Path(setup["start"]) if setup["start"] else None)
    trained = list(matrices.trained.values())
    send({"ready": True})
    _init_process_group(Path(setup["store"]), setup["rank"], setup["count"], setup["device"])
    loaded.model.train()
    for job in jobs:
        flat = _flatten_parameters(trained)
        dist.broadcast(flat, 0)
        with torch.no_grad():
            for one, sent in _split_flat(flat, trained):
                one.copy_(sent)
        torch.manual_seed(job["seed"])
        examples = [Example(ids, weights) for ids, weights in job["rows"]]
        loss, tokens = step.backward(loaded.model, matrices, examples, job["job"], lambda: None)
        dist.reduce(_flatten_gradients(trained, loss, tokens), 0)
        for one in trained:
            one.grad = None


def _split_flat(flat: Tensor, trained: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each matrix with its part of what `_flatten_parameters` or `_flatten_gradients` made."""
    place = 0
    for one in trained:
        yield one, flat[place : place + one.numel()].view(one.shape)
        place += one.numel()


def _main() -> None:
    """The lines of standard input are what there is to do; its end is the end."""
    out, sys.stdout = sys.stdout, sys.stderr
    came: queue.SimpleQueue[JsonObject] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            came.put(json.loads(line))
        os._exit(0)  # the leader is gone or has done: nothing here is of use to anybody

    def send(what: JsonObject) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    threading.Thread(target=read, daemon=True).start()
    from sqlft_local import errors

    try:
        run_worker(came.get(), iter(came.get, None), send)
    except SqlftError as e:
        send({"error": e.message, "next": e.next_step})
    except BaseException as e:
        if errors.is_out_of_memory(e):
            send({"memory": True})
        else:
            traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # at once: the thread that reads would hold up an orderly end


if __name__ == "__main__":
    machine.configure_math_libraries()
    _main()
