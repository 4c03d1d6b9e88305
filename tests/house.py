"""The house rules as functions from a tree to the list of its violations."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Cells = list[dict]


def notebooks(root: Path) -> list[Path]:
    "Every notebook, in the order that is the architecture."
    found = [p for p in (root / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    return sorted(found, key=lambda p: p.relative_to(root).as_posix())


def cells(path: Path) -> Cells:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def train_less(flights: Path) -> None:
    "Give the worked example's training in this copy three months and two passes: all it does, on less."
    path = flights / "2_train.ipynb"
    book = json.loads(path.read_text(encoding="utf-8"))
    asked = next(one for one in book["cells"] if "parameters" in one["metadata"].get("tags", []))
    text, months = re.subn(r"(?s)(months: list\[int\] = )\[.*?\]", r"\1[1, 5, 9]", source(asked))
    asked["source"], epochs = re.subn(r"(epochs: int = )\d+", r"\g<1>2", text)
    assert months == epochs == 1, "the parameters are others now"
    path.write_text(json.dumps(book), encoding="utf-8")


def default_exp(path: Path) -> str:
    for cell in cells(path):
        if found := re.search(r"^#\|\s*default_exp\s+(\S+)", source(cell), re.M):
            return found[1]
    return ""


def exported_modules(root: Path) -> dict[str, Path]:
    "Module name (without the package) -> notebook, for those that export."
    return {name: path for path in notebooks(root) if (name := default_exp(path))}


def _imports(path: Path, module: str) -> list[str]:
    "Modules of ours that an exported module imports, at any level, relative or absolute."
    found, package = [], module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            parts = base + (node.module.split(".") if node.module else [])
            if not node.level:
                if parts[0] != "workbench":
                    continue
                parts = parts[1:]
            found += [".".join([*parts, alias.name]) for alias in node.names] + [".".join(parts)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found += [name.removeprefix("workbench.") for name in names if name.startswith("workbench.")]
    return found


def order_violations(root: Path) -> list[str]:
    "Modules that import a module whose notebook does not sort before their own."
    modules = exported_modules(root)
    order = {name: place for place, name in enumerate(modules)}
    bad = []
    for name in modules:
        path = root / "workbench" / (name.replace(".", "/") + ".py")
        if path.exists():
            used = {target for target in _imports(path, name) if target in order}
            bad += [
                f"{name} imports {u}, which does not sort before it"
                for u in sorted(used)
                if order[u] >= order[name]
            ]
    return bad


def mapping_violations(root: Path) -> list[str]:
    "Notebook `NN_layer/NN_name` must export `layer.name`, once, and each module must have a notebook."
    bad, seen = [], {}
    for path in notebooks(root):
        name = default_exp(path)
        if not name:
            continue
        relative = path.relative_to(root / "notebooks").with_suffix("")
        wanted = ".".join(re.sub(r"^\d+_", "", part) for part in relative.parts)
        if name != wanted:
            bad.append(f"{relative} exports {name}, not {wanted}")
        if name in seen:
            bad.append(f"{relative} and {seen[name]} both export {name}")
        seen[name] = relative
    for path in (root / "workbench").rglob("*.py"):
        name = ".".join(path.relative_to(root / "workbench").with_suffix("").parts)
        if path.name not in ("__init__.py", "_modidx.py") and name not in seen:
            bad.append(f"workbench/{name.replace('.', '/')}.py has no notebook")
    return bad


def job_violations(root: Path) -> list[str]:
    "A job notebook (a numbered one that is not a module, or one that has the tag) has exactly one `parameters` cell."
    bad = []
    for path in notebooks(root):
        tagged = sum("parameters" in c.get("metadata", {}).get("tags", []) for c in cells(path))
        is_job = path.parent.name in ("flights", "words")
        if tagged > 1 or (is_job and tagged != 1):
            bad.append(f"{path.relative_to(root)} has {tagged} cells tagged 'parameters'")
    return bad


def conflict_violations(root: Path) -> list[str]:
    "Merge conflict markers, which nbdev-test runs past when they stand in markdown."
    marks = re.compile(r"^(<{7}|>{7}) ", re.M)
    paths = [*notebooks(root), *(root / "workbench").rglob("*.py")]
    texts = {p: "\n".join(map(source, cells(p))) if p.suffix == ".ipynb" else p.read_text() for p in paths}
    return [
        f"{p.relative_to(root)} holds conflict markers" for p, text in texts.items() if marks.search(text)
    ]


_EXPORT = "from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()"


def _generated(path: Path) -> bool:
    return path.name == "_modidx.py" or "AUTOGENERATED! DO NOT EDIT!" in path.read_text()[:6000]


def sync_violations(root: Path, scratch: Path) -> list[str]:
    "Differences between `workbench/` and what `notebooks/` export, found in a scratch copy."
    old, new = root / "workbench", scratch / "workbench"
    shutil.copy(root / "pyproject.toml", scratch)
    (scratch / "README.md").touch()
    ignore = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
    shutil.copytree(root / "notebooks", scratch / "notebooks", ignore=ignore)
    for path in old.rglob("*.py"):
        if not _generated(path):
            target = new / path.relative_to(old)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    new.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _EXPORT], cwd=scratch, check=True, capture_output=True
    )
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", "workbench"], cwd=scratch, check=True)
    have = {p.relative_to(old): p.read_bytes() for p in old.rglob("*.py")}
    want = {p.relative_to(new): p.read_bytes() for p in new.rglob("*.py")}
    bad = [f"stale: no notebook exports workbench/{p}" for p in sorted(have.keys() - want.keys())]
    bad += [f"missing: workbench/{p}" for p in sorted(want.keys() - have.keys())]
    return bad + [f"differs: workbench/{p}" for p in sorted(have.keys() & want.keys()) if have[p] != want[p]]


def size_violations(root: Path) -> list[str]:
    "Functions over 50 lines, modules over 400 lines of code, star imports, functions without types, and named ones (also inside others) without docstring."
    bad, lengths = [], []
    for path in sorted((root / "workbench").rglob("*.py")):
        if path.name == "_modidx.py":
            continue
        text, where = path.read_text(), path.relative_to(root)
        code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        bad += [f"{where} has {len(code)} lines of code"] if len(code) > 400 else []
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                bad.append(f"{where}:{node.lineno} imports *")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append(node.end_lineno - node.lineno + 1)
                bad += _function_violations(
                    node, f"{where}:{node.lineno} {node.name}", not node.name.startswith("_")
                )
    median = sorted(lengths)[len(lengths) // 2] if lengths else 0
    return bad + ([f"the median function has {median} lines"] if median >= 10 else [])


def _function_violations(node: ast.FunctionDef | ast.AsyncFunctionDef, where: str, public: bool) -> list[str]:
    size = node.end_lineno - node.lineno + 1
    bad = [f"{where} has {size} lines"] if size > 50 else []
    arguments = [a for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
    if node.returns is None or untyped:
        bad.append(f"{where} lacks types {untyped}")
    if public and not ast.get_docstring(node):
        bad.append(f"{where} has no docstring")
    return bad


def readme_tree(text: str) -> set[str]:
    "Paths in README's tree: the code block under 'The tree', one path a line, two spaces a level."
    block = re.search(r"## The tree.*?```\w*\n(.*?)```", text, re.S)
    paths, stack = set(), []
    for line in (block[1] if block else "").splitlines():
        name = line.split()[0] if line.split() else ""
        if not name:
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        stack = [*stack[:depth], name.rstrip("/")]
        paths.add("/".join(stack))
    return paths


def tree_violations(root: Path, tracked: list[str]) -> list[str]:
    "README's tree against the files git tracks: top level, notebooks, scripts and benchmarks are listed in full."
    listed = readme_tree((root / "README.md").read_text(encoding="utf-8"))
    full = ("notebooks/", "scripts/", "benchmarks/", ".ci/")
    real = {t.split("/")[0] for t in tracked}
    for path in (t for t in tracked if t.startswith(full)):
        parts = path.split("/")
        real |= {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    bad = [f"README's tree lacks {p}" for p in sorted(real - listed)]
    return bad + [f"README's tree lists {p}, which is not there" for p in sorted(p for p in listed - real)]
