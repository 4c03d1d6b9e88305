"""Who may do what: accounts, tokens, and the header of a proxy."""

import json
from pathlib import Path

import pytest

from workbench.base.audit import entries, verify
from workbench.base.errors import BadInput, BadSetting, NotAllowed, NotFound
from workbench.base.ledger import Ledger
from workbench.base.settings import load_settings
from workbench.release.people import ROLES, People, Person, from_proxy, me

ALONE = Person("me", ROLES, "local")


@pytest.fixture
def people(ledger: Ledger) -> People:
    return People(ledger)


@pytest.fixture
def ada(people: People) -> Person:
    return people.sign_in(people.add("ada", ["admin", "author"], by=ALONE))


def test_without_accounts_the_user_of_the_machine_may_do_everything(ledger: Ledger) -> None:
    found = me(ledger)
    assert found.via == "local" and found.roles == ROLES


def test_with_accounts_a_token_says_who_one_is(
    people: People, ada: Person, project: Path, monkeypatch
) -> None:
    with pytest.raises(NotAllowed, match="nobody is signed in"):
        me(people.ledger)
    (project / "token").write_text(people.add("bob", ["approver"], by=ada) + "\n")
    monkeypatch.setenv("WORKBENCH_USER_TOKEN", f"file:{project / 'token'}")
    assert me(people.ledger) == Person("bob", ("approver",))
    (project / "token").write_text("guess")
    with pytest.raises(NotAllowed, match="nobody's"):
        me(people.ledger)


def test_the_first_account_is_an_admins(people: People) -> None:
    with pytest.raises(BadInput, match="the first one|first account is bob"):
        people.add("bob", ["approver"], by=ALONE)
    assert people.all() == []


def test_only_an_admin_changes_accounts(people: People, ada: Person) -> None:
    bob = people.sign_in(people.add("bob", ["approver"], by=ada))
    attempts = (
        lambda by: people.add("eve", ["admin"], by=by),
        lambda by: people.grant("bob", ["admin"], by=by),
        lambda by: people.remove("ada", by=by),
        lambda by: people.renew("ada", by=by),
    )
    for attempt in attempts:
        for by in (
            bob,
            ALONE,
            Person("ghost", ROLES),
            Person("bob", ROLES),
        ):  # what one says of oneself is no role
            with pytest.raises(NotAllowed, match="takes the role admin"):
                attempt(by)
    assert people.all() == [Person("ada", ("author", "admin")), bob]


def test_a_token_is_renewed_and_the_old_one_means_nothing(people: People, ada: Person) -> None:
    old = people.add("bob", ["approver"], by=ada)
    new = people.renew("bob", by=people.sign_in(old))  # one's own
    assert people.sign_in(new).name == "bob"
    with pytest.raises(NotAllowed):
        people.sign_in(old)


def test_the_last_admin_stays(people: People, ada: Person) -> None:
    with pytest.raises(BadInput, match="the last admin"):
        people.remove("ada", by=ada)
    people.add("zoe", ["admin"], by=ada)
    people.remove("ada", by=ada)
    assert [person.name for person in people.all()] == ["zoe"]


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "x" * 200, "a\nb"])
def test_a_name_that_no_record_can_carry(people: People, name: str) -> None:
    with pytest.raises(BadInput, match="person"):
        people.add(name, ["admin"], by=ALONE)


def test_roles_are_known_ones(people: People, ada: Person) -> None:
    for roles in ([], ["root"], ["admin", "boss"]):
        with pytest.raises(BadInput, match="reader, author, approver, admin") as caught:
            people.add("bob", roles, by=ada)
        assert "bob" in caught.value.what or "bob" in caught.value.hint
    with pytest.raises(NotFound, match="no account 'bob'"):
        people.grant("bob", ["reader"], by=ada)


def test_every_change_is_in_the_audit_and_no_token_anywhere(people: People, ada: Person) -> None:
    tokens = [people.add("bob", ["approver"], by=ada)]
    people.grant("bob", ["reader"], by=ada)
    tokens.append(people.renew("bob", by=ada))
    people.remove("bob", by=ada)
    told = [(entry.actor, entry.subject, entry.detail["what"]) for entry in entries(people.ledger)]
    assert told == [
        ("me", "ada", "added"),
        *(("ada", "bob", what) for what in ("added", "roles", "token", "removed")),
    ]
    assert verify(people.ledger).problems == ()
    kept = b"".join(path.read_bytes() for path in people.ledger.store.root.rglob("*") if path.is_file())
    assert not any(token.encode() in kept for token in tokens)
    assert "token_hash" not in json.dumps([entry.detail for entry in entries(people.ledger)])


def test_a_proxys_header_counts_only_from_the_proxy(people: People, ada: Person, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_TRUSTED_PROXIES", "10.0.0.0/24, ::1")
    says = {"x-forwarded-email": "ada"}
    assert from_proxy(says, "10.0.0.7", people.ledger) == Person("ada", ("author", "admin"), "proxy")
    assert from_proxy(says, "::1", people.ledger).name == "ada"
    for headers, peer in (
        (says, "10.0.1.7"),
        (says, "not an address"),
        ({}, "10.0.0.7"),
        ({"X-Forwarded-Email": "eve"}, "10.0.0.7"),
        ({"X-Forwarded-Email": "ada", "x-forwarded-email": "bob"}, "10.0.0.7"),
    ):
        with pytest.raises(NotAllowed):
            from_proxy(headers, peer, people.ledger)
    monkeypatch.setenv("WORKBENCH_TRUSTED_PROXIES", "10.0.0.300")
    with pytest.raises(BadSetting, match=r"10\.0\.0\.300"):
        from_proxy(says, "10.0.0.7", people.ledger, load_settings())


def test_no_proxy_is_trusted_unless_said(people: People, ada: Person) -> None:
    with pytest.raises(NotAllowed, match="no trusted proxy"):
        from_proxy({"X-Forwarded-Email": "ada"}, "127.0.0.1", people.ledger)


def test_who_lacks_a_role_is_told_the_command_that_adds_it(people: People, ada: Person) -> None:
    people.add("bob", ["author"], ada)
    with pytest.raises(NotAllowed, match="takes the role approver") as caught:
        people.get("bob").must("approver", "answering")
    assert "people roles bob --role author --role approver," in caught.value.hint


def test_the_audit_shows_which_roles_somebody_was_given(people: People, ada: Person) -> None:
    people.add("bob", ["author"], ada)
    line = str(entries(people.ledger)[-1])
    assert line.endswith('ada  person bob: roles ["author"], what "added"')
