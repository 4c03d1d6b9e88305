"""Random notebooks that fail, are mended or edited, and resumed: all ends as if they had been run as a whole."""

import random
from pathlib import Path

import pytest
from shell import Done, Shell

from workbench.base.ledger import Ledger

HEAD = "import random\nfrom pathlib import Path\nimport numpy as np\nrandom.seed(n)\nlog = []"
NAMES = "abcde"


def statement(rng: random.Random) -> str:
    "One statement over a few names that share, change and call one another."
    x, y, z = (rng.choice(NAMES) for _ in range(3))
    return rng.choice(
        (
            f"{x} = [{rng.randrange(9)}, n]",
            f"{x} = {y}",
            f"{x} = [{y}, {z}]",
            f"{x} = {{'k': {y}}}",
            f"{x} = str({y})[:40]",
            f"{x} = np.arange({rng.randrange(2, 5)}.0) + m",
            f"{x} = {y}[:2]",
            f"{x} = random.random()",
            f"{x} += {x}" if x < "c" else f"log.append({rng.randrange(9)})",
            f"log.append(str({y})[:40])",
            f"{x}.append({rng.randrange(9)})",
            f"{x}[0] = {rng.randrange(9)}",
            f"{x} = lambda: ({y}, n)",
            f"def {x}(v=1):\n    log.append(v)\n    return len(str({y})[:40]) + v",
            f"def {x}():\n    global {y}\n    {y} = m\n    return {y}",
            f"{x} = {y}()",
            f"{y}()",
            f"del {x}",
            f"for {x} in range(2):\n    log.append({x})",
            f"{x} = (v for v in range(3))",
            f"{x} = next({y})",
            f"print(len(log), n if {rng.randrange(2)} else m)",
            f"Path('{x}.txt').write_text(str({y})[:40])",
            f"{x} = Path('{y}.txt').read_text()",
            f"class {x.upper()}:\n    held = {y}\n{x} = {x.upper()}()",
            f"{x}.extra = {y}",
        )
    )


def cell(rng: random.Random) -> str:
    "A few statements, each of which may fail without ending the cell."
    found = []
    for _ in range(rng.randrange(1, 4)):
        body = "\n".join("    " + line for line in statement(rng).split("\n"))
        found.append(f"try:\n{body}\nexcept Exception as error:\n    log.append(type(error).__name__)")
    return "\n".join(found)


def plain_cell(rng: random.Random) -> str:
    "As `cell`, with the statements on their own, so that what is read from the code is more exact."
    while True:
        found = "\n".join(statement(rng) for _ in range(rng.randrange(1, 3)))
        if "()" not in found.replace("def", "") or rng.random() < 0.3:
            return found


SHOW = """
def _told(value, deep=0):
    if deep > 6:
        return '...'
    if callable(value) and hasattr(value, '__code__'):
        return 'function ' + str(value.__code__.co_names) + str(value.__code__.co_consts[:2] if deep < 0 else '')
    if isinstance(value, (list, tuple)):
        return [type(value).__name__] + [_told(v, deep + 1) for v in value]
    if isinstance(value, dict):
        return {k: _told(v, deep + 1) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, 'held'):
        return [type(value).__name__, _told(value.held, deep + 1), _told(vars(value), deep + 1)]
    if hasattr(value, '__next__'):
        return list(value)
    return repr(value) if ' at 0x' not in repr(value) else type(value).__name__
told = {k: _told(v) for k, v in sorted(globals().items()) if k in ('n', 'm', 'log', 'a', 'b', 'c', 'd', 'e')}
same = sorted(x + y for x in told for y in told if x < y and globals()[x] is globals()[y] and isinstance(globals()[x], (list, dict, np.ndarray)))
print(told, same, random.random())
"""


def clean() -> None:
    "No file of an earlier run is left."
    for path in Path().glob("?.txt"):
        path.unlink()


def runs_differ(versions: list[list[str]]) -> bool:
    "Whether a cell reads a file that a later one, or one that was edited since, writes: no second run is like the first."
    for name in NAMES:
        texts = [f"'{name}.txt').{verb}_text" for verb in ("read", "write")]
        reads, writes = (
            {place for cells in versions for place, cell in enumerate(cells) if text in cell}
            for text in texts
        )
        kept = {place for place, cell in enumerate(versions[-1]) if texts[1] in cell}
        if reads and writes and (max(writes) >= min(reads) or writes - kept):
            return True
    return False


def campaign(shell: Shell, seed: int) -> tuple[Done, Done] | None:
    "A notebook fails, is edited here and there, is resumed (perhaps twice), and run as a whole; None when no two runs are alike."
    rng = random.Random(seed)
    kind = rng.choice((cell, plain_cell))
    cells = ["n = 1\nm = 2", HEAD, *(kind(rng) for _ in range(rng.randrange(2, 7)))]
    clean()
    done = shell.run(*cells, "1 / 0")
    cells, versions = cells[: done.ran[-1]] if done.ran[-1] <= len(cells) else cells, [list(cells)]
    for _ in range(rng.choice((1, 1, 2))):
        edits = rng.choice((0, 0, 1, 1, 2))
        for _ in range(edits):
            place = rng.randrange(2, len(cells)) if len(cells) > 2 else 1
            if rng.random() < 0.3:
                cells[0] = rng.choice(("n = 3\nm = 2", "n = 1\nm = 5"))
            elif place > 1:
                cells[place] = kind(rng)
        if done.ran[-1:] and done.ran[-1] <= len(cells) and "1 / 0" not in cells[-1]:
            cells[done.ran[-1] - 1] = cells[done.ran[-1] - 1] if kind is cell else "pass"
        versions.append(list(cells))
        done = shell.run(*cells, SHOW, earlier=done.run)
        if len(done.outputs) == len(cells) + 1 and done.outputs[-1]:
            break
    clean()
    return None if runs_differ(versions) else (done, shell.run(*cells, SHOW))


@pytest.fixture
def shell(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_AFTER_S", "0")
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_SHARE", "1")
    return Shell(ledger, monkeypatch)


def _same(shell: Shell, seed: int) -> int:
    found = campaign(shell, seed)
    if found is None:
        return 0
    resumed, whole = found
    assert resumed.outputs == whole.outputs, (seed, resumed.said, resumed.ran)
    if whole.outputs[-1]:  # it went to the end
        assert sorted(resumed.names) == sorted(whole.names), (seed, resumed.said)
    return len(whole.ran) - len(resumed.ran)


@pytest.mark.parametrize("block", range(2))
def test_a_resumed_notebook_ends_as_a_whole_one(shell: Shell, block: int) -> None:
    spared = sum(_same(shell, seed) for seed in range(block * 8, block * 8 + 8))
    assert spared > 8  # and not because everything ran again


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_a_thousand_resumed_notebooks(shell: Shell, block: int) -> None:
    for seed in range(1000 + block * 25, 1025 + block * 25):
        _same(shell, seed)
