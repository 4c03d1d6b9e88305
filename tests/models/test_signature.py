"""Whose a bundle is: the store's own key, a pair of keys, and everything that is neither."""

import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import toy

from workbench.base import audit
from workbench.base.errors import BadInput, BadSetting, Corrupt, NotAllowed, NotFound, Unavailable
from workbench.base.ledger import Ledger
from workbench.base.redact import forget
from workbench.base.settings import load_settings
from workbench.base.store import Store, sha256_bytes
from workbench.models import bundle as bundles
from workbench.models.bundle import META, SEAL
from workbench.models.shelf import Shelf, load
from workbench.models.signature import KEY_FILE, SIGNATURE, Keys, keys_of, make_key
from workbench.release.people import People, me
from workbench.release.trust import trust


@pytest.fixture
def shelf(ledger: Ledger) -> Shelf:
    made = Shelf(ledger)
    made.add("delays", **toy.linear_parts())
    return made


@pytest.fixture
def other(tmp_path: Path) -> Ledger:
    "Another store with a key of its own."
    book = Ledger(Store(tmp_path / "other"))
    Shelf(book).add("own", **toy.linear_parts(slope=3.0))
    return book


def refusal(kind: type[Exception], *args: Any) -> str:
    with pytest.raises(kind) as caught:
        load(*args)
    return f"{caught.value.what} | {caught.value.hint}"


def test_a_store_makes_one_private_key_and_signs_with_it(shelf: Shelf) -> None:
    key = shelf.ledger.store.root / KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_text().strip()) == 64
    line = (shelf.path("delays/1") / SIGNATURE).read_text()
    assert line.startswith("hmac-sha256 ") and key.read_text().strip() not in line
    before = key.read_text()
    shelf.add("delays", **toy.linear_parts(slope=2.0))
    assert key.read_text() == before and load("delays/2", shelf.ledger).version == 2


def _signs(root: Path, start: Any, out: Any) -> None:
    start.wait()
    out.put(keys_of(root).sign("0" * 64))


def test_processes_that_begin_together_have_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, out = context.Barrier(6), context.Queue()
    made = [context.Process(target=_signs, args=(tmp_path / "new", start, out)) for _ in range(6)]
    for process in made:
        process.start()
    lines = {out.get(timeout=60) for _ in made}
    for process in made:
        process.join(30)
    assert len(lines) == 1


def test_what_was_changed_and_sealed_again_is_corrupt(shelf: Shelf) -> None:
    folder = shelf.path("delays/1")
    text = (folder / META).read_bytes().replace(b'"late"', b'"soon"').replace(b"toy:late", b"toy:soon")
    (folder / META).write_bytes(text)
    (folder / SEAL).write_text(sha256_bytes(text) + "\n")
    assert "does not fit" in refusal(Corrupt, folder, shelf.ledger)


def test_a_bundle_of_another_store_is_refused_with_what_to_do(shelf: Shelf, other: Ledger) -> None:
    said = refusal(BadInput, shelf.path("delays/1"), other)
    assert "another store" in said and "workbench trust" in said and "bundle_key" in said
    assert load(shelf.path("delays/1"), shelf.ledger).digest == shelf.load("delays", 1).digest
    assert bundles.load_pinned(shelf.path("delays/1"), shelf.load("delays", 1).digest).metrics == {}


def test_a_signature_of_another_bundle_does_not_fit(shelf: Shelf) -> None:
    second = shelf.add("delays", **toy.linear_parts(slope=2.0))
    one = shelf.path("delays/1") / SIGNATURE
    one.write_bytes((second.path / SIGNATURE).read_bytes())
    refusal(Corrupt, "delays/1", shelf.ledger)


def test_the_same_configured_key_makes_two_stores_believe_each_other(
    shelf: Shelf, other: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARED", "k" * 40)
    monkeypatch.setenv("WORKBENCH_BUNDLE_KEY", "env:SHARED")
    refusal(BadInput, "delays/1", shelf.ledger)  # signed before with the store's own
    made = shelf.add("delays", **toy.linear_parts(slope=2.0))
    assert load(made.path, other).digest == made.digest
    monkeypatch.setenv("SHARED", "short")
    with pytest.raises(BadSetting, match="at least 32"):
        shelf.add("delays", **toy.linear_parts())
    assert shelf.versions("delays") == [1, 2]
    forget()


def test_a_key_in_plain_text_is_no_setting(project: Path) -> None:
    (project / "settings.ini").write_text(f"[laptop]\nbundle_key = {'k' * 40}\n")
    with pytest.raises(BadSetting, match="bundle_key"):
        load_settings()


def test_a_key_that_others_can_read_is_not_used(shelf: Shelf) -> None:
    os.chmod(shelf.ledger.store.root / KEY_FILE, 0o640)
    assert "chmod 600" in refusal(BadSetting, "delays/1", shelf.ledger)


def test_a_key_that_cannot_be_read_is_said_so(shelf: Shelf) -> None:
    key = shelf.ledger.store.root / KEY_FILE
    key.unlink()
    key.mkdir(mode=0o700)
    assert str(key) in refusal(Unavailable, "delays/1", shelf.ledger)


def test_a_lost_key_is_an_unknown_one(shelf: Shelf) -> None:
    (shelf.ledger.store.root / KEY_FILE).unlink()
    assert "has no key yet" in refusal(BadInput, "delays/1", shelf.ledger)


def strip(folder: Path) -> Path:
    (folder / SIGNATURE).unlink()
    return folder


def test_a_bundle_of_before_is_warned_about_and_in_production_refused(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = strip(shelf.path("delays/1"))
    assert load("delays/1", shelf.ledger).predictor()(toy.columns(3)).shape == (3,)
    assert load("delays/1", shelf.ledger).version == 1
    assert capsys.readouterr().err.count("is not signed") == 1
    assert "not signed" in refusal(BadInput, folder, shelf.ledger)  # a folder that no ledger knows
    monkeypatch.setenv("WORKBENCH_UNSIGNED_BUNDLES", "refuse")
    assert "workbench trust" in refusal(BadInput, "delays/1", shelf.ledger)
    trust("delays/1", "made before signatures", ledger=shelf.ledger)
    assert load("delays/1", shelf.ledger).version == 1


def test_production_refuses_unsigned_bundles() -> None:
    root = Path(__file__).parents[2]
    assert "unsigned_bundles = refuse" in (root / "settings.ini").read_text().split("[production]")[1]


@pytest.fixture
def pair(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    "A profile that signs by ed25519; the public key."
    private, public = make_key()
    (project / "key.pem").write_text(private)
    monkeypatch.setenv("WORKBENCH_BUNDLE_PRIVATE_KEY", f"file:{project / 'key.pem'}")
    return public


def test_who_checks_an_ed25519_signature_cannot_sign(
    pair: str, shelf: Shelf, other: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (shelf.path("delays/1") / SIGNATURE).read_text().startswith("ed25519 ")
    assert not (shelf.ledger.store.root / KEY_FILE).exists()
    assert load("delays/1", shelf.ledger).version == 1
    monkeypatch.delenv("WORKBENCH_BUNDLE_PRIVATE_KEY")
    assert "bundle_public_keys" in refusal(BadInput, shelf.path("delays/1"), shelf.ledger)
    monkeypatch.setenv("WORKBENCH_BUNDLE_PUBLIC_KEYS", f"{make_key()[1]}, {pair}")
    assert load(shelf.path("delays/1"), other).digest == shelf.load("delays", 1).digest
    with pytest.raises(BadSetting, match="no key to sign with"):
        shelf.add("delays", **toy.linear_parts())
    monkeypatch.setenv("WORKBENCH_BUNDLE_PUBLIC_KEYS", make_key()[1])
    assert "believed here" in refusal(BadInput, "delays/1", shelf.ledger)


def test_hmac_counts_for_nothing_where_public_keys_are_listed(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_BUNDLE_PUBLIC_KEYS", make_key()[1])
    assert "hmac-sha256" in refusal(BadInput, "delays/1", shelf.ledger)


@pytest.mark.parametrize("bit", range(0, 512, 41))
def test_a_wrong_bit_of_an_ed25519_signature_is_corrupt(pair: str, shelf: Shelf, bit: int) -> None:
    path = shelf.path("delays/1") / SIGNATURE
    scheme, name, said = path.read_text().split()
    wrong = bytearray.fromhex(said)
    wrong[bit // 8] ^= 1 << bit % 8
    path.write_text(f"{scheme} {name} {wrong.hex()}\n")
    refusal(Corrupt, "delays/1", shelf.ledger)


@pytest.mark.parametrize(
    "text", ["", "not a key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
)
def test_a_private_key_that_is_none_is_said_so(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("PEM", text)
    monkeypatch.setenv("WORKBENCH_BUNDLE_PRIVATE_KEY", "env:PEM")
    with pytest.raises(BadSetting, match="not an ed25519 private key"):
        shelf.add("delays", **toy.linear_parts())


def test_public_keys_come_as_base64_or_as_openssl_writes_them(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    private, public = make_key()
    pem = load_pem_private_key(private.encode(), None).public_key()
    text = pem.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    (project / "public.pem").write_text(text)
    found = [Keys(tmp_path, load_settings().model_copy(update={"bundle_public_keys": said}))._believed()
             for said in (public, f"file:{project / 'public.pem'}")]  # fmt: skip
    assert found[0] == found[1] and len(found[0]) == 1
    for wrong in ("AAAA", "?" * 44):
        monkeypatch.setenv("WORKBENCH_BUNDLE_PUBLIC_KEYS", wrong)
        with pytest.raises(BadSetting, match="not an ed25519 public key"):
            keys_of()._believed()


def test_trust_takes_a_folder_in_and_the_audit_says_why(shelf: Shelf, other: Ledger) -> None:
    foreign = shelf.path("delays/1")
    made = trust(foreign, "from the north office", name="delays", ledger=other)
    assert (made.ref, made.digest) == ("delays/1", shelf.load("delays", 1).digest)
    assert (
        made.predictor()(toy.columns(9)).tobytes()
        == shelf.load("delays", 1).predictor()(toy.columns(9)).tobytes()
    )
    entry = audit.entries(other)[-1]
    assert (entry.action, entry.detail["why"], entry.detail["digest"]) == (
        "trust", "from the north office", made.digest
    )  # fmt: skip
    assert entry.detail["was"].startswith("hmac-sha256 ")
    refusal(BadInput, foreign, other)  # it was copied, the folder is as it was
    trust(foreign, "and where it lies", ledger=other)
    assert load(foreign, other).digest == made.digest
    refusal(BadInput, "delays/1", shelf.ledger)


def test_trust_takes_a_reason_an_admin_and_a_whole_bundle(shelf: Shelf, other: Ledger) -> None:
    foreign = shelf.path("delays/1")
    with pytest.raises(BadInput, match="without a reason"):
        trust(foreign, " ", ledger=other)
    with pytest.raises(BadInput, match="on the shelf already"):
        trust("own/1", "why", name="twice", ledger=other)
    with pytest.raises(NotFound):
        trust(foreign / "nowhere", "why", ledger=other)
    by = me(other)
    People(other).add("ada", ["admin"], by)
    People(other).add("bob", ["author", "approver"], People(other).get("ada"))
    with pytest.raises(NotAllowed, match="role admin"):
        trust(foreign, "why", by=People(other).get("bob"), ledger=other)
    data = bytearray((foreign / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (foreign / "weights.safetensors").write_bytes(data)
    with pytest.raises(Corrupt):
        trust(foreign, "why", name="delays", by=People(other).get("ada"), ledger=other)
    assert Shelf(other).versions("delays") == []


def test_a_parcel_is_signed_where_it_arrives(shelf: Shelf, tmp_path: Path) -> None:
    from workbench.jobs.parcel import pack_shelf, pack_store, unpack_shelf, unpack_store

    shelf.set_alias("delays", "champion", 1)
    far = Ledger(Store(tmp_path / "far"))
    unpack_shelf(pack_shelf(shelf.ledger, tmp_path / "sent.tar"), far)
    assert load("delays@champion", far).digest == shelf.load("delays", 1).digest
    made = Shelf(far).add("delays", **toy.linear_parts(slope=2.0))
    came = pack_store(far, tmp_path / "came.tar", tmp_path / "sent.tar")
    unpack_store(tmp_path / "came.tar", shelf.ledger, "none", {}, came["sha256"])
    assert load("delays/2", shelf.ledger).digest == made.digest
    keys = [(root / KEY_FILE).read_text() for root in (shelf.ledger.store.root, far.store.root)]
    assert keys[0] != keys[1]


def test_the_key_is_nowhere_but_in_its_file(shelf: Shelf, tmp_path: Path) -> None:
    secret = (shelf.ledger.store.root / KEY_FILE).read_text().strip().encode()
    for path in shelf.ledger.store.root.rglob("*"):
        if path.is_file() and path.name != KEY_FILE:
            assert secret not in path.read_bytes(), path
    assert json.dumps(load("delays/1", shelf.ledger).meta).encode().count(secret) == 0
