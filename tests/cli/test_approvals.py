"""A promotion that waits for a second person, as it is typed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import toy
from typed import typed

from workbench.base.ledger import Ledger
from workbench.base.records import start
from workbench.models.shelf import Shelf
from workbench.release.evidence import Evidence
from workbench.release.gates import judge


def workbench(*args: str, token: str = "", code: int = 0) -> Any:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    env |= {"TOKEN": token, "WORKBENCH_USER_TOKEN": "env:TOKEN"} if token else {}
    done = typed(*args, "--json", env=env)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout or done.stderr)


@pytest.fixture
def judged(ledger: Ledger, project: Path) -> None:
    "A version with a verdict that passed, in a project where one approval is needed."
    bundle = Shelf(ledger).add("delays", **toy.linear_parts())
    facts = {
        "latency_p50_ms": 0.2,
        "latency_p99_ms": 0.4,
        "serving_skew": 0.0,
        "size_mb": 0.3,
        "rows": 9000,
        "fingerprint": "spring",
        "proof": {
            "repeats": {"value": 0.0, "how": "again"},
            "feed": {"value": 1.0, "how": "checked"},
            "labels": {},
            "licence": "",
            "open": False,
        },
    }
    new, old = (
        Evidence(
            ref=ref,
            digest=digest,
            metrics={"auc": auc, "pr_auc": auc / 2, "brier": 0.1, "calibration": 0.02},
            usd_per_1000=1e-6,
            slices=[],
            **facts,
        )
        for ref, digest, auc in ((bundle.ref, bundle.digest, 0.8), ("delays/0", "base", 0.7))
    )
    verdict = json.dumps(judge(new, baseline=old, champion=None).to_json())
    params = {"digest": bundle.digest, "verdict": ledger.store.put(verdict.encode())}
    with start("promote", "delays", params=params, ledger=ledger):
        pass
    (project / "settings.ini").write_text("[laptop]\napprovals_needed = 1\n")


def test_ada_asks_bob_approves_and_the_audit_tells(judged: None, ledger: Ledger) -> None:
    ada = workbench("people", "add", "ada", "--role", "admin", "--role", "author", "--role", "approver")[
        "token"
    ]
    bob = workbench("people", "add", "bob", "--role", "approver", token=ada)["token"]
    refused = workbench("promote", "delays/1", code=12)
    assert "nobody is signed in" in refused["error"] and "user_token" in refused["hint"]
    asked = workbench("promote", "delays/1", token=ada)
    assert (asked["state"], asked["author"], asked["needed"]) == ("open", "ada", 1)
    assert [one["id"] for one in workbench("requests", token=ada)] == [asked["id"]]
    own = workbench("approve", str(asked["id"]), "-m", "good", token=ada, code=12)
    assert "nobody approves their own work" in own["error"]
    done = workbench("approve", str(asked["id"]), "-m", "slices hold", token=bob)
    assert (done["alias"], done["version"]) == ("champion", 1)
    assert Shelf(ledger).aliases("delays") == {"champion": 1} and workbench("requests", token=bob) == []
    over = workbench("reject", str(asked["id"]), "-m", "too late", token=bob, code=6)
    assert "is promoted" in over["error"]
    told = workbench("audit", "show", "delays/1")
    assert [entry["action"] for entry in told] == ["request", "refuse", "approve", "promote", "refuse"]
    head = workbench("audit", "verify")["head"]
    path = ledger.store.root / "audit.jsonl"
    path.write_text(path.read_text().replace("slices hold", "who cares"))
    broken = workbench("audit", "verify", "--head", head, code=5)
    assert "was changed" in broken["problems"][0]
    assert ada not in path.read_text() and bob not in path.read_text()
