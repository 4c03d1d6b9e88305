"""A secret is found however it is spelled, and nothing else is touched."""

import base64
import html
import json
import random
import string
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest

from workbench.base import records, redact
from workbench.base.ledger import Ledger

VALUE = 'p@ss/Wörd+"42"\\n<&>\' end'


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    redact.remember("env:TOKEN", VALUE)
    yield
    redact.forget()


@pytest.mark.parametrize(
    "spell",
    [
        str, repr, ascii, json.dumps, quote, quote_plus, html.escape,
        lambda v: quote(v, safe="").lower() if v.islower() else quote(v, safe=""),
        lambda v: json.dumps(v, ensure_ascii=False),
        lambda v: repr(v.encode()),
        lambda v: v.encode().hex(),
        lambda v: v.encode().hex().upper(),
        lambda v: base64.b64encode(v.encode()).decode(),
        lambda v: base64.urlsafe_b64encode(v.encode()).decode(),
    ],
)  # fmt: skip
def test_every_spelling_is_taken_out(spell) -> None:
    text = f"before {spell(VALUE)} after"
    shown = redact.redact(text)
    assert "[secret env:TOKEN]" in shown and spell(VALUE).strip("'\"b") not in shown
    assert shown.startswith("before ") and shown.endswith(" after")


@pytest.mark.parametrize("before", range(4))
def test_base64_of_a_longer_text_holds_nothing_of_it(before: int) -> None:
    whole = base64.b64encode(b"u" * before + b":" + VALUE.encode() + b":tail").decode()
    shown = redact.redact(f"Authorization: Basic {whole}")
    kept = shown.partition("[secret env:TOKEN]")
    assert kept[1] and len(kept[0]) + len(kept[2]) < len("Authorization: Basic ") + 18


@pytest.mark.slow
def test_any_split_of_any_secret_is_caught_by_waiting_for_what_is_held() -> None:
    chance = random.Random(5)
    for _ in range(200):
        secret = "".join(chance.choices("ab" + string.punctuation, k=chance.randint(4, 12)))
        redact.remember("file:x", secret)
        text = "".join(chance.choices("ab \n", k=20)) + secret + "".join(chance.choices("ab \n", k=20))
        out, tail = "", ""
        while text:
            size = chance.randint(1, 6)
            tail, text = redact.redact(tail + text[:size]), text[size:]
            wait = redact.held(tail)
            out, tail = out + tail[: len(tail) - wait], tail[len(tail) - wait :]
        assert secret not in out + tail


def test_structures_keep_their_shape_and_clean_ones_are_left() -> None:
    data = {"rows": [1, None, (VALUE, 2.5)], f"key {VALUE}": {"a": True}}
    clean = redact.redacted(data)
    assert clean == {
        "rows": [1, None, ("[secret env:TOKEN]", 2.5)],
        "key [secret env:TOKEN]": {"a": True},
    }
    assert redact.redact("nothing here") == "nothing here" and redact.held("nothing here\n") == 0


def test_a_long_secret_of_many_lines_is_taken_out_line_by_line() -> None:
    key = "-----BEGIN-----\n" + "\n".join(f"line{n:02}" * 8 for n in range(4)) + "\n-----END-----"
    redact.remember("file:key", key)
    assert "line02" not in redact.redact("| " + key.replace("\n", "\n| "))


def test_the_ledger_holds_no_secret(ledger: Ledger) -> None:
    with pytest.raises(ValueError), records.start("check", "x", params={"a": VALUE}, ledger=ledger) as run:
        run.log(said=VALUE)  # type: ignore[arg-type]
        raise ValueError(f"refused {VALUE}")
    found = records.find(run.id, ledger)
    assert "[secret env:TOKEN]" in found.error and found.params == {"a": "[secret env:TOKEN]"}
    for file in ledger.store.root.glob("ledger.db*"):
        assert VALUE.encode() not in file.read_bytes() and b"p@ss" not in file.read_bytes()


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, workbench.base.redact; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert not loaded & {"pydantic", "structlog", "sqlite3", "numpy"}
