"""Asking through a Ray cluster of this machine: what comes out is what the handler inside gives in process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, cast

import pytest
from sqlft_echo import Echo
from sqlft_ray import Ray

import sqlft
from sqlft import errors
from sqlft.handler import Handler
from sqlft.session import Tick
from sqlft.testing import HandlerConformance

pytestmark = pytest.mark.usefixtures("ray_cluster")
STATE = "id, a, a_error, a_usage.input_tokens, a_usage.cost_usd"


def load_stranger() -> type[Handler]:
    """Without its folder on the path, where other tests would find it installed."""
    spec = spec_from_file_location("stranger", Path(__file__).with_name("stranger.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault("stranger", module_from_spec(spec))
    spec.loader.exec_module(module)
    return cast("type[Handler]", module.Stranger)


class RayConformance(HandlerConformance):
    """What holds of every handler; the wrapped class has no name in a module, so that it is constructed by the core."""

    engine_options = {"handler": "unread", "actors": 1, "num_cpus": 0.5}
    wrapped = "echo"

    def test_constructs_without_heavy_imports_or_network(self) -> None:
        code = (
            "import socket, sys\n"
            "def refuse(*a, **k): raise AssertionError('network')\n"
            "socket.socket.connect = socket.getaddrinfo = refuse\n"
            "from sqlft import plugins; from sqlft.options import build_options\n"
            f"cls = plugins.load_engine_class('ray', {{'handler': {self.wrapped!r}}})\n"
            f"cls(build_options(cls.engine_options, {{'handler': {self.wrapped!r}}}, 'it'))\n"
            "assert not {'ray', 'torch'} & set(sys.modules)"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class TestRayEcho(RayConformance):
    handler = Ray.wrap(Echo)
    engine_options = {"handler": "unread", "actors": 2, "num_cpus": 0.5}


class TestRayStranger(RayConformance):
    """A handler that trains, of a package of its own."""

    handler = Ray.wrap(load_stranger())
    wrapped = "stranger"
    train_options = {"steps": 4}


class Asked:
    """What the toiler's log says since this was made."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._start = len(log.read_bytes()) if log.exists() else 0

    def lines(self) -> list[tuple[int, str]]:
        """Process and what it was asked, `open` among it."""
        text = self.log.read_bytes()[self._start :].decode() if self.log.exists() else ""
        pairs = (line.split(" ", 1) for line in text.splitlines())
        return [(int(pid), what) for pid, what in pairs]

    def prompts(self) -> list[str]:
        """All that was asked."""
        return [what for _, what in self.lines() if what != "open"]

    def pids(self) -> list[int]:
        """Of the processes that asked."""
        return list(dict.fromkeys(pid for pid, _ in self.lines()))


class FleetConnection:
    """A connection with a model `fleet` on two actors of the cluster, `here` in this process, and a table t.

    All tests share the actors, which write to one log.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.con = sqlft.connect(warn=lambda _: None, catalog=os.environ["SQLFT_HOME"])
        self.run(
            "CREATE TABLE t AS SELECT i AS id, CASE WHEN i % 50 = 7 THEN NULL WHEN i % 50 = 9 THEN 'bad' "
            "ELSE 'p' || (i % 140) || ' ☃' END AS x FROM range(200) r(i)"
        )
        self.make("here", f"toiler USING log = '{log}.here'")
        self.make("fleet", f"ray USING handler = 'toiler', actors = 2, num_cpus = 0.25, log = '{log}'")

    def make(self, name: str, engine: str, base: str = "") -> None:
        """An engine and a model of it."""
        self.run(f"CREATE ML_ENGINE {name}_engine FROM {engine}")
        self.run(f"CREATE MODEL {name} PREDICT a USING engine = '{name}_engine', base = '{base}'")

    def asked(self, name: str = "") -> Asked:
        """What is asked from now on."""
        return Asked(Path(f"{self.log}{name}"))

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """A statement's rows."""
        return self.con.execute(sql).fetchall()

    def join(self, model: str, using: str = "cache = false", rows: str = "t", columns: str = STATE) -> list[Any]:
        """The rows with the model's answers."""
        joined = f"SELECT t.id, m.a, m.a_error, m.a_usage FROM {rows} t JOIN {model} m ON m.content = t.x"
        return self.run(f"SELECT {columns} FROM ({joined}) ORDER BY ALL USING {using}")

    def refuse(self, sql: str, kind: type[errors.SqlftError], *words: str) -> None:
        """The statement fails with these words, and says what to do."""
        with pytest.raises(kind) as caught:
            self.run(sql)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert caught.value.next_step


@pytest.fixture(scope="module")
def toil_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toil") / "log"


@pytest.fixture
def fleet(toil_log: Path, ray_cluster: None) -> Iterator[FleetConnection]:
    made = FleetConnection(toil_log)
    yield made
    made.con.close()


def test_rows_usage_and_cache_are_those_of_the_handler_in_process(fleet: FleetConnection) -> None:
    of_fleet, of_here = fleet.asked(), fleet.asked(".here")
    in_process = fleet.join("here")
    assert fleet.join("fleet", "cache = true") == in_process
    assert Counter(of_fleet.prompts()) == Counter(of_here.prompts())
    usage = "SELECT rows, distinct_prompts, calls, errors, input_tokens, output_tokens, cost_usd FROM sqlft.usage"
    here, there = (fleet.run(f"{usage} WHERE model = '{name}'") for name in ("here", "fleet"))
    assert here == there
    before = len(of_here.prompts())
    kept = fleet.join("here", "cache = true", columns="id, a, a_error")  # answers that the other engine got
    assert kept == [row[:3] for row in in_process]
    assert set(of_here.prompts()[before:]) == {"bad"}


def test_both_actors_work_and_open_once(fleet: FleetConnection, until: Callable[..., Any]) -> None:
    asked = fleet.asked()
    until(lambda: fleet.join("fleet", "cache = false, seconds = 0.005") and len(asked.pids()) == 2)
    before = [what for _, what in asked.lines()].count("open")
    for text in ("one", "two", "three"):
        fleet.run(f"SELECT a FROM fleet WHERE content = '{text}' USING seconds = 0.005")
    assert [what for _, what in asked.lines()].count("open") == before


def test_few_rows_cost_few_requests(fleet: FleetConnection) -> None:
    asked = fleet.asked()
    query = "SELECT m.a FROM t JOIN fleet m ON m.content = t.x WHERE t.id > 9 LIMIT 3 USING seconds = 0.01"
    assert len(fleet.run(query)) == 3
    assert len(asked.prompts()) < 30


def test_a_window_of_the_handler_is_filled(fleet: FleetConnection) -> None:
    """Though requests come in lots: what waits for more gets more, or learns that there are none."""
    asked = fleet.asked()
    assert len(fleet.join("fleet", "cache = false, window = 23")) == 200
    assert len(asked.prompts()) == len(set(asked.prompts()))


def test_long_answers_come_in_parts(fleet: FleetConnection) -> None:
    """Twelve of 3 MB: more than one call hands over."""
    rows = "(FROM t WHERE id BETWEEN 10 AND 21)"
    [(length,)] = fleet.join("fleet", "cache = false, length = 3000000", rows, "sum(length(a))")
    assert length > 36_000_000


def test_an_answer_is_shown_as_it_is_written(fleet: FleetConnection) -> None:
    parts: list[str] = []
    fleet.con.session.show_answer_part = parts.append
    assert fleet.run("SELECT a FROM fleet WHERE content = 'hello'") == [("HELLO",)]
    assert parts == ["H"]


def test_what_is_asked_is_seen(fleet: FleetConnection) -> None:
    assert "Shared by 2 actors of 0.25 CPU" in str(fleet.run("EXPLAIN SELECT a FROM fleet WHERE content = 'x'"))
    ticks: list[Tick] = []
    fleet.con.session.show_progress = ticks.append
    fleet.join("fleet")
    assert any(tick.metrics.get("actors") for tick in ticks)
    from sqlft.report.doctor import run_checkup

    [(host, has)] = cast("dict[str, str]", run_checkup()["cluster"]).items()
    assert host == os.uname().nodename
    assert has.startswith("2 CPUs, 0 GPUs")


def test_errors_are_those_of_the_handler(fleet: FleetConnection) -> None:
    fleet.run("CREATE MODEL closed PREDICT a USING engine = 'fleet_engine', base = 'closed'")
    fleet.refuse("SELECT a FROM closed WHERE content = 'x'", errors.ProviderError, "The account is closed.", "Open it.")
    fleet.refuse("SELECT a FROM fleet WHERE content = 'raise'", errors.HandlerError, "ValueError: out of luck")
    assert fleet.run("SELECT a FROM fleet WHERE content = 'x'") == [("X",)]


def test_actors_that_are_killed_lose_nothing_and_ask_little_twice(
    fleet: FleetConnection, until: Callable[..., Any]
) -> None:
    """Only what was in flight at one that died is asked again."""
    asked, killed = fleet.asked(), []
    fleet.run("CREATE TABLE many AS SELECT i AS id, 'row ' || i AS x FROM range(1200) r(i)")
    counts = sorted(random.Random(7).sample(range(50, 900), 3))

    def kill_now_and_then() -> None:
        for count in counts:
            until(lambda count=count: len(asked.prompts()) > count and asked.lines()[-1][0] not in killed)
            killed.append(asked.lines()[-1][0])
            os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    rows = fleet.join("fleet", "seconds = 0.002", "many", "id, a, a_error")
    killer.join()
    assert rows == [(i, f"ROW {i}", None) for i in range(1200)]
    times = Counter(asked.prompts())
    assert set(times) == {f"row {i}" for i in range(1200)}
    first_askers = {}
    for pid, what in asked.lines():
        first_askers.setdefault(what, pid)
    twice = Counter(first_askers[what] for what, count in times.items() if count > 1)
    assert set(twice) <= set(killed)
    assert all(count <= 64 for count in twice.values())
    assert max(times.values()) <= 3
    assert fleet.run("SELECT calls, errors FROM sqlft.usage WHERE model = 'fleet'") == [(1200, 0)]


def test_a_row_that_kills_is_an_error_of_its_own(fleet: FleetConnection) -> None:
    asked = fleet.asked()
    rows = "(SELECT i AS id, CASE i WHEN 5 THEN 'kill' ELSE 'row ' || i END AS x FROM range(30) r(i))"
    answers = fleet.join("fleet", "cache = false", rows, "id, a, a_error")
    [(number, answer, error)] = [row for row in answers if row[2] is not None]
    assert (number, answer) == (5, None)
    assert error.startswith("actor_died: 3 actors died")
    assert [row[:2] for row in answers if row[0] != 5] == [(i, f"ROW {i}") for i in range(30) if i != 5]
    assert asked.prompts().count("kill") == 3


def test_actors_that_cannot_start_are_an_error(fleet: FleetConnection) -> None:
    engine = "ray USING handler = 'toiler', actors = 1, num_cpus = 0.25, fails = "
    fleet.make("exiting", f"{engine}'exit'")
    fleet.refuse("SELECT a FROM exiting WHERE content = 'x'", errors.HandlerError, "3 actors in a row died")
    fleet.make("lacking", f"{engine}'missing'")
    fleet.refuse("SELECT a FROM lacking WHERE content = 'x'", errors.HandlerNotInstalled, "'nowhere'", "runtime_env")
    for name, option, words in (
        ("elsewhere", "address = '127.0.0.1:9'", "can have one only"),
        ("gpus", "num_gpus = 4000", "4000 GPUs"),
        ("cpus", "num_cpus = 4000", "4000 CPUs"),
    ):
        fleet.make(name, f"ray USING handler = 'toiler', {option}")
        fleet.refuse(f"SELECT a FROM {name} WHERE content = 'x'", errors.HandlerError, words)


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    """In a process that is connected to none."""
    addresses = {
        "127.0.0.1:9": "no Ray cluster at 127.0.0.1:9",
        "ray://127.0.0.1:10001": "does not speak to Ray through a client",
        "nowhere": "'nowhere' is no address",
        "127.0.0.1:x": "'127.0.0.1:x' is no address",
        "127.0.0.1:99999": "no Ray cluster at 127.0.0.1:99999",
        "": "'' is no address",
    }
    code = (
        "import sqlft\n"
        f"con = sqlft.connect(catalog={str(tmp_path)!r}, warn=print)\n"
        f"for i, address in enumerate({list(addresses)}):\n"
        "    con.execute(f\"CREATE ML_ENGINE e{i} FROM ray USING handler = 'echo', address = '{address}'\")\n"
        "    con.execute(f\"CREATE MODEL m{i} PREDICT a USING engine = 'e{i}'\")\n"
        "    try: con.execute(f\"SELECT a FROM m{i} WHERE content = 'x'\").fetchall()\n"
        "    except sqlft.SqlftError as e: print(str(e).splitlines()[0])\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == len(addresses), done.stdout + done.stderr
    assert all(words in line for line, words in zip(lines, addresses.values(), strict=True)), lines


def test_idle_actors_make_room_and_ctrl_c_ends_waiting_for_it(fleet: FleetConnection) -> None:
    """What is held by others is waited for."""
    import ray

    fleet.run("SELECT a FROM fleet WHERE content = 'x'")
    fleet.make("large", "ray USING handler = 'toiler', actors = 1, num_cpus = 2")
    assert fleet.run("SELECT a FROM large WHERE content = 'not kept'") == [("NOT KEPT",)]
    assert fleet.run("UNLOAD MODEL large") == [("large", 1)]
    assert fleet.run("UNLOAD MODEL large") == []
    assert fleet.run("UNLOAD MODEL fleet") == []
    holder = ray.remote(Asked).options(num_cpus=2).remote(fleet.log)
    ray.get(holder.pids.remote())
    ticks: list[Tick] = []

    def interrupt(tick: Tick) -> None:
        ticks.append(tick)
        if "actors" in tick.metrics:
            fleet.con.interrupt()

    fleet.con.session.show_progress = interrupt
    with pytest.raises(errors.Cancelled):
        fleet.run("SELECT a FROM large WHERE content = 'y'")
    assert ticks[-1].metrics["actors"] == 0
    ray.kill(holder)


def test_nodes_get_folders_they_do_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the reader on the driver's machine, once; what they see under the same path they use as it is."""
    import ray
    from sqlft_ray.files import Depot, find_here, list_files

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, moved = tmp_path / "adapter", tmp_path / "moved"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)) * 300_000)  # more than one piece
    (folder / "sub" / "naïve name.json").write_text("{}")
    (folder / "empty").touch()
    tree = list_files(folder)
    assert find_here(tree, None) == folder
    folder.rename(moved)
    seen_by_depot = list_files(moved)
    depot = ray.remote(Depot).options(num_cpus=0).remote()
    hidden = seen_by_depot._replace(files=(*seen_by_depot.files[:-1], seen_by_depot.files[-1]._replace(modified=1)))
    got = find_here(hidden, depot)
    assert got.is_relative_to(tmp_path / "cache")
    assert [(f.name, f.size) for f in list_files(got).files] == [(f.name, f.size) for f in tree.files]
    assert (got / "weights").read_bytes() == (moved / "weights").read_bytes()
    (moved / "weights").write_bytes(b"cut")
    assert find_here(hidden, depot) == got
    other = hidden._replace(files=hidden.files[1:])
    with pytest.raises(errors.HandlerError, match="changed while it was copied"):
        find_here(other, depot)
    assert [p.name for p in (tmp_path / "cache" / "sqlft" / "ray").iterdir() if p.is_dir()] == [hidden.digest]


def test_changes_come_home_whole(ray_cluster: None, tmp_path: Path) -> None:
    from sqlft_ray.files import FileState, apply_changes, collect_changes

    there, home = tmp_path / "there", tmp_path / "home"
    home.mkdir()
    known: dict[str, FileState] = {}
    (there / "checkpoints" / "step-1").mkdir(parents=True)
    (there / "checkpoints" / "step-1" / "state").write_text("one")
    apply_changes(home, collect_changes(there, known))
    (there / "checkpoints" / "step-1").rename(there / "checkpoints" / "step-2")
    (home / "log").write_text("of home")
    apply_changes(home, collect_changes(there, known))
    assert sorted(p.relative_to(home).as_posix() for p in home.rglob("*")) == [
        *("checkpoints", "checkpoints/step-2", "checkpoints/step-2/state", "log")
    ]
