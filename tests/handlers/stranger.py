"""A handler as a stranger would write it, which tests steer while it trains.

It learns prompts by heart.  The option `control` names a folder; in it `script.json` says what happens at which
step, files that the handler makes tell how far it is, and a file `go` lets it go on.
"""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sqlft.errors import ProviderError
from sqlft.handler import (
    Artifact,
    Completion,
    Estimate,
    LengthOptions,
    ModelSpec,
    Predictor,
    Price,
    Progress,
    Range,
    Request,
    Secret,
    Trainer,
    TrainingSet,
)


@dataclass
class EngineOptions:
    """CREATE ML_ENGINE … USING"""

    api_key: Annotated[str | None, "the key", Secret("STRANGER_KEY")] = None


@dataclass
class PredictOptions:
    """SELECT … USING"""

    prefix: Annotated[str, "put before every answer"] = ""


@dataclass
class TrainOptions(LengthOptions):
    """FINETUNE … USING"""

    steps: Annotated[int, "how many steps", Range(1)] = 4
    control: Annotated[str | None, "the folder that steers it"] = None
    hub_token: Annotated[str | None, "a secret of the training", Secret()] = None
    returns: Annotated[str, "what train returns: folder, file, workdir, elsewhere, remote, missing, nothing"] = "folder"
    seconds_left: Annotated[float | None, "what it reports with each step"] = None


class Stranger(Trainer):
    """Learns by heart."""

    engine_options = EngineOptions
    predict_options = PredictOptions
    train_options = TrainOptions
    resume_options = ("hub_token",)

    def open(self, model: ModelSpec, artifact: Artifact | None, options: Any) -> Predictor:
        known = {}
        if artifact is not None and artifact.path is not None:
            known = json.loads((artifact.path / "learned.json").read_text())["answers"]
        return Memory(model.base, known, options.prefix)

    def estimate(self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any) -> Estimate | None:
        if model.base == "broken":
            raise ZeroDivisionError
        why_not = ("It needs 80.0 GB, and 4.0 GB are free.", "Take the base 'tiny'.") if model.base == "huge" else None
        return Estimate(
            data.train.num_rows,
            1200,
            options.steps,
            90.0,
            2_100_000_000,
            4_000_000_000,
            remarks=("by heart",),
            why_not=why_not,
        )

    def count_tokens(self, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
        return [len(text.split()) for text in texts]

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        return Price(training=500.0) if model.base == "tiny" else None

    def train(
        self,
        model: ModelSpec,
        start: Artifact | None,
        data: TrainingSet,
        options: Any,
        workdir: Path,
        report: Callable[[Progress], None],
    ) -> Artifact:
        control = Control(options.control)
        control.tell(
            "begun",
            {
                "start": None if start is None else str(start.path),
                "key": self.options.api_key,
                "token": options.hub_token,
            },
        )
        checkpoint = workdir / "checkpoint.json"
        first = json.loads(checkpoint.read_text())["step"] + 1 if checkpoint.exists() else 1
        for step in range(first, options.steps + 1):
            progress = Progress(
                step,
                options.steps,
                {"loss": 1 / step, "valid_loss": 2 / step, "epoch": step / options.steps},
                options.seconds_left,
            )
            report(progress)
            control.at(step, lambda now=progress: report(now), workdir)
            if step % max(1, options.steps // 100) == 0:
                checkpoint.write_text(json.dumps({"step": step}))
        made = workdir / "adapter"
        made.mkdir(exist_ok=True)
        answers = {m[-2]["content"]: m[-1]["content"] for m in data.train.column("messages").to_pylist()}
        if start is not None and start.path is not None:
            answers = json.loads((start.path / "learned.json").read_text())["answers"] | answers
        (made / "learned.json").write_text(json.dumps({"answers": answers, "first_step": first}))
        control.at("end", lambda: None, made)
        elsewhere = workdir.parent.parent / "elsewhere"
        returned = {
            "folder": Artifact(made, details={"tokens": 123, "first_step": first}),
            "file": Artifact(made / "learned.json"),
            "workdir": Artifact(workdir),
            "relative": Artifact(Path("adapter")),
            "remote": Artifact(remote_id="ft:stranger:1"),
            "missing": Artifact(workdir / "nowhere"),
            "nothing": None,
        }
        if options.returns == "elsewhere":
            elsewhere.mkdir(exist_ok=True)
            return Artifact(made.rename(elsewhere / "adapter"))
        return returned[options.returns]


class Memory(Predictor):
    """Knows what it was shown."""

    def __init__(self, base: str, known: dict[str, str], prefix: str) -> None:
        self.base, self.known, self.prefix = base, known, prefix

    def predict(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            asked = request.messages[-1].content
            yield Completion(request.id, self.prefix + self.known.get(asked, f"{self.base} does not know"))


class Control:
    """The tests' hand inside the worker."""

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None

    def tell(self, name: str, what: Any = None) -> None:
        if self.folder is not None:
            (self.folder / f"{name}.part").write_text(json.dumps(what))
            (self.folder / f"{name}.part").rename(self.folder / name)

    def at(self, step: int | str, report: Callable[[], None], workdir: Path) -> None:
        if self.folder is None or not (self.folder / "script.json").exists():
            return
        what = json.loads((self.folder / "script.json").read_text()).get(str(step))
        if what is not None:
            self.tell(f"at-{step}", os.getpid())
            getattr(self, what)(report, workdir)

    def listen(self, report: Callable[[], None], workdir: Path) -> None:
        while not (self.folder / "go").exists():
            report()
            time.sleep(0.01)

    def deaf(self, report: Callable[[], None], workdir: Path) -> None:
        while not (self.folder / "go").exists():
            time.sleep(0.01)

    def wrap(self, report: Callable[[], None], workdir: Path) -> None:
        try:
            self.listen(report, workdir)
        except Exception as e:
            raise RuntimeError("training broke off") from e

    def swallow(self, report: Callable[[], None], workdir: Path) -> None:
        try:
            self.listen(report, workdir)
        except Exception:
            pass

    def kill(self, report: Callable[[], None], workdir: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def exit(self, report: Callable[[], None], workdir: Path) -> None:
        print("the stranger gives up", file=sys.stderr, flush=True)
        os._exit(3)

    def memory(self, report: Callable[[], None], workdir: Path) -> None:
        raise MemoryError

    def crash(self, report: Callable[[], None], workdir: Path) -> None:
        raise ValueError(f"boom with {json.loads((self.folder / 'begun').read_text())['key']}")

    def refuse(self, report: Callable[[], None], workdir: Path) -> None:
        raise ProviderError("The provider is closed on Sundays.", "Come back on Monday.")

    def disk(self, report: Callable[[], None], workdir: Path) -> None:
        with open(workdir / "huge", "wb") as file:
            while True:
                file.write(bytes(1 << 16))

    def pickle(self, report: Callable[[], None], workdir: Path) -> None:
        (workdir / "weights.bin").write_bytes(b"x")

    def nospace(self, report: Callable[[], None], workdir: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")
