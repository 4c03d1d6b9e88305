"""Functions and cells on a Ray: the kernel's code, in order, stoppable, and nothing lost."""

import importlib.util
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rays import free

from workbench.base import errors
from workbench.base.errors import BadInput, NotFound, Stopped, Unavailable
from workbench.base.records import Ledger, find, runs
from workbench.compute import session
from workbench.compute.cell import names, start_cell, take
from workbench.compute.keeper import next_chunk
from workbench.compute.remote import Needs, Pending, _raise, attach, feasible, map, megabytes, remote, send
from workbench.compute.shipping import check_fresh, dumps, local_modules, pack
from workbench.compute.stop import marks, stop_since

ray_words = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
pytestmark = [
    *ray_words,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize(
    ("left", "slots", "item_s", "size", "wanted"),
    [
        (1000, 2, 0.0, 8.0, 1),
        (1000, 2, 0.001, 8.0, 250),
        (100, 2, 1e-9, 8.0, 25),
        (1000, 2, 0.001, 1e6, 32),
        (1000, 2, 5.0, 8.0, 1),
        (1, 64, 0.0, 1e12, 1),
    ],
)
def test_a_chunk_fits_time_size_and_the_end(
    left: int, slots: int, item_s: float, size: float, wanted: int
) -> None:
    assert next_chunk(left, slots, item_s, size) == wanted


@pytest.mark.parametrize(
    ("code", "reads", "assigns"),
    [
        ("y = x + 1", {"x"}, {"y"}),
        ("x = 1\ny = x", set(), {"x", "y"}),
        ("if a:\n    x = 1\ny = x", {"a", "x"}, {"x", "y"}),
        ("x += 1", {"x"}, {"x"}),
        ("t[0] = 1\nu.a.b = 2", {"t", "u"}, {"t", "u"}),
        ("def f(a, b=c):\n    global g\n    g = a\n    return a + h", {"c", "h"}, {"f", "g"}),
        ("import os.path as p, sys\nfrom m import n", set(), {"p", "sys", "n"}),
        ("[i for i in rows if i > low]", {"rows", "low"}, set()),
        ("for i in rows:\n    pass", {"rows"}, {"i"}),
        ("with open(path) as f:\n    text = f.read()", {"open", "path", "f"}, {"f", "text"}),
        ("class A(B):\n    k = v\n    def m(self): return w", {"B", "v", "w"}, {"A"}),
        ("(n := len(s))", {"len", "s"}, {"n"}),
        ("lambda a: a + b", {"b"}, set()),
        ("try:\n    q = 1\nexcept E as e:\n    pass\nq", {"E", "q"}, {"q", "e"}),
        ("x: int = y", {"int", "y"}, {"x"}),
        ("del d[k]", {"d", "k"}, {"d"}),
    ],
)
def test_what_a_cell_reads_and_assigns(code: str, reads: set[str], assigns: set[str]) -> None:
    found = names(code)
    assert (set(found.reads), set(found.assigns)) == (reads, assigns)


def test_a_cell_that_is_no_python_is_a_syntax_error() -> None:
    with pytest.raises(SyntaxError):
        names("y = = 1")


@pytest.mark.parametrize(("text", "mb"), [("4GB", 4000.0), ("1.5mb", 1.5), (2_000_000, 2.0)])
def test_memory_in_words(text: Any, mb: float) -> None:
    assert megabytes(text) == mb


@pytest.mark.parametrize("text", ["much", "4", "GB", "4 potatoes"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(BadInput, match="memory"):
        megabytes(text)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: remote("x"), "function is 'x'"),
        (lambda: remote(cpus="two"), "cpus is 'two'"),
        (lambda: remote(cpus=-1), "cpus = -1"),
        (lambda: remote(memory=[1]), "memory is a list"),
        (lambda: remote(retries=1.5), "retries is 1.5"),
        (lambda: map(3, [1]), "function is 3"),
        (lambda: map(abs, None), "items is None"),
        (lambda: map(abs, [1], chunk=-1), "chunk = -1"),
        (lambda: map(abs, [1], chunk="x"), "chunk is 'x'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_here(ask: Callable[[], Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        ask()


def test_an_error_of_code_that_was_loaded_anew_is_ours() -> None:
    spec = importlib.util.spec_from_file_location(errors.__name__, errors.__file__)
    assert spec and spec.loader
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    packed = dumps(twin.BadInput("the result cannot travel", "make it there"), "the error")
    with pytest.raises(BadInput, match="cannot travel") as caught:
        _raise({"error": packed, "trace": ""})
    assert caught.value.hint == "make it there"


def test_what_no_machine_has_is_named() -> None:
    small, large = {"CPU": 2.0, "memory": 4e9}, {"CPU": 1.0, "GPU": 1.0, "memory": 9e9}
    assert feasible(Needs(cpus=2), [small, large]) == ""
    assert feasible(Needs(gpus=2), [small, large]) == "GPU 2 (the largest machine has 1)"
    assert "one machine" in feasible(Needs(cpus=2, gpus=1), [small, large])


@pytest.fixture
def own(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    "Writes, imports and forgets a module of the user's own."
    monkeypatch.syspath_prepend(str(project))
    stamp = [time.time()]

    def write(text: str) -> Any:
        stamp[0] += 5  # Python takes a cached file for current within the second
        (project / "own_rule.py").write_text(textwrap.dedent(text))
        os.utime(project / "own_rule.py", (stamp[0], stamp[0]))
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("own_rule", None)


def only(module: Any) -> dict[str, str]:
    return {name: file for name, file in local_modules().items() if name == module.__name__}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def f(x): return 1", "def f(x): return 2"),
        ("LIMIT = 1", "LIMIT = 2"),
        ("class A:\n    def m(self): return 1", "class A:\n    def m(self): return 2"),
        ("def f(x): return 1", "def f(x: return 1"),
    ],
)
@pytest.mark.parametrize("seen", [True, False])
def test_an_edited_module_is_named(own: Any, before: str, after: str, seen: bool) -> None:
    own(before)
    import own_rule

    if seen:
        check_fresh(only(own_rule))
    own(after)
    with pytest.raises(BadInput, match=r"own_rule\.py was edited after this process imported it"):
        check_fresh(only(own_rule))


def test_comments_and_reloads_are_fine(own: Any) -> None:
    own("def f(x): return x in {1, 2, 'a'}")
    import own_rule

    first = pack(only(own_rule))
    own("# a remark\ndef f(x): return x in {1, 2, 'a'}")
    check_fresh(only(own_rule))
    own("def f(x): return 3")
    importlib.reload(own_rule)
    assert pack(only(own_rule)).digest != first.digest


def test_what_cannot_travel_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(BadInput, match=r"it reads 'lock', a _thread\.lock"):
        dumps(lambda x: lock, "f")


def test_without_a_cluster_it_runs_here(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RAY_ADDRESS", "none")
    tries: list[int] = []

    @remote(retries=2)
    def shaky(n: int) -> int:
        tries.append(n)
        if len(tries) < 3:
            raise OSError("not yet")
        return n

    assert map(shaky, [5], ledger=ledger) == [5] and tries == [5, 5, 5]
    assert map(shaky, []) == [] and str(session.cluster()).startswith("no cluster")
    assert [run.kind for run in runs(ledger)] == ["remote"]


@pytest.mark.ray
def test_results_come_in_order_with_prints_and_cost(there: Any, ledger: Ledger, capfd: Any) -> None:
    def work(n: int) -> int:
        time.sleep(0.02 * (n % 3))
        print("item", n)
        return n * n

    assert map(work, range(40), ledger=ledger) == [n * n for n in range(40)]
    said = capfd.readouterr().out.split("\n")
    assert sorted(said) == sorted(["", *(f"item {n}" for n in range(40))])
    run = runs(ledger)[0]
    assert run.status == "succeeded" and run.cost["usd"] > 0 and run.cost["worker_s"] > 0.3
    assert "item 39" in Path(run.artifacts["log"]).read_text()


@pytest.mark.ray
def test_arrays_go_and_come_and_are_ours(there: Any) -> None:
    import numpy as np

    big = np.arange(1_000_000)
    found = map(lambda n: big[n::4].copy(), range(4))
    assert all((part == big[n::4]).all() and part.flags.writeable for n, part in enumerate(found))


@pytest.mark.ray
def test_the_worker_runs_what_the_kernel_runs(there: Any, own: Any) -> None:
    own("def f(x): return 1")
    import own_rule

    call = remote(lambda: own_rule.f(0))
    assert call() == 1
    own("def f(x): return 22222")
    with pytest.raises(BadInput, match=r"own_rule\.py was edited"):
        call()
    importlib.reload(own_rule)
    assert [call() for _ in range(3)] == [22222] * 3


@pytest.mark.ray
def test_errors_come_back_as_themselves(there: Any, tmp_path: Path) -> None:
    mark = tmp_path / "tries"

    def shaky(n: int) -> int:
        with mark.open("a") as file:
            file.write("x")
        if mark.stat().st_size < 3:
            raise KeyError("not yet")
        return n

    assert map(shaky, [7], retries=2) == [7] and mark.read_text() == "xxx"
    with pytest.raises(ZeroDivisionError) as caught:
        map(lambda n: 1 // n, [1, 0])
    assert "on the worker" in caught.value.__notes__[0] and "1 // n" in caught.value.__notes__[0]
    with pytest.raises(BadInput, match="the result cannot travel: it is a _thread.lock"):
        remote(lambda: threading.Lock())()
    with pytest.raises(Unavailable, match="wants GPU 1"):
        remote(gpus=1)(lambda: 1)()
    with pytest.raises(TypeError, match="missing a required argument"):
        remote(lambda a: a)()


@pytest.mark.ray
def test_an_interrupt_frees_the_cores_and_all_goes_on(there: Any, ledger: Ledger) -> None:
    import ray

    def forever(n: int) -> None:
        while True:
            time.sleep(0.02)

    def deaf(n: int) -> None:
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

    for work in (forever, deaf):
        threading.Timer(1.5, lambda: signal.raise_signal(signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            map(work, [1, 2], ledger=ledger)
        assert free(ray) < 4  # 2 s on a quiet machine
        assert runs(ledger)[0].status == "killed"
    assert map(lambda n: n + 1, [1], ledger=ledger) == [2]


@pytest.mark.ray
def test_rays_own_tasks_and_actors_end_too(there: Any) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def ping(self) -> int:
            return 1

    @ray.remote
    def forever() -> None:
        while True:
            time.sleep(0.02)

    kept = Actor.remote()
    ray.get(kept.ping.remote())
    before = marks()
    mine = Actor.remote()
    ray.get(mine.ping.remote())
    refs = [forever.remote() for _ in range(2)]
    assert ray.wait(refs, timeout=1)[0] == []
    assert stop_since(before) >= 3
    free(ray)
    assert ray.get(kept.ping.remote()) == 1
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(mine.ping.remote())
    ray.kill(kept)


@pytest.mark.ray
def test_a_cell_goes_and_its_names_come_back(there: Any, capfd: Any) -> None:
    space: dict[str, Any] = {"x": [1, 2], "scale": 3, "unused": threading.Lock()}
    code = "import math\ndef times(v):\n    return v * scale\ny = [times(v) for v in x]\nx[0] = 9\nimport threading\nf = threading.Lock()\nprint('there')\nlen(y)"
    assert take(start_cell(code, space, Needs()).result(), space) == 2
    assert (space["y"], space["x"], space["times"](2), space["math"].floor(1.5)) == ([3, 6], [9, 2], 6, 1)
    said = capfd.readouterr()
    assert said.out == "there\n" and "f (_thread.lock)" in said.err and "f" not in space
    with pytest.raises(BadInput, match="'unused'.*lock"):
        start_cell("z = str(unused)", space, Needs())


@pytest.mark.ray
def test_a_run_is_followed_again(
    there: Any, ledger: Ledger, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(n: int) -> int:
        print("heard", n)
        return n * 2

    pending = send(work, [1, 2], Needs(), name="work", ledger=ledger)
    assert attach(pending.run, ledger=ledger) == [2, 4]
    assert attach(pending.run[:-2], ledger=ledger) == [2, 4]
    assert capfd.readouterr().out.count("heard 2") == 2
    assert find(pending.run, ledger).status == "succeeded"
    with pytest.raises(NotFound, match="no remote run"):
        attach("20200101", ledger=ledger)


@pytest.mark.ray
def test_a_stopped_run_says_so(there: Any, ledger: Ledger) -> None:
    pending: Pending = send(lambda n: time.sleep(60), [1], Needs(), name="long", ledger=ledger)
    threading.Timer(1.0, pending.stop).start()
    with pytest.raises(Stopped):
        pending.result()
    assert find(pending.run, ledger).status == "killed"
