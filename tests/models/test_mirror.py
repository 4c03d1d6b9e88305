"""What MLflow shows of the shelf is what the ledger says."""

import pytest
import toy

from workbench.base.ledger import Ledger
from workbench.base.mirror import _client, drain, drain_models
from workbench.base.records import start
from workbench.models.shelf import Shelf

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


def test_versions_and_aliases_are_copied_and_kept_in_step(ledger: Ledger, capsys) -> None:
    shelf = Shelf(ledger)
    client, experiment = _client(ledger.store)
    with start("fit", "delays", ledger=ledger) as run:
        pass
    for slope in (1.0, 2.0):
        shelf.add("delays", run=run.id, **toy.linear_parts(slope=slope))
    shelf.set_alias("delays", "champion", 1)
    shelf.set_alias("delays", "shadow", 2)
    drain(ledger, client, experiment)
    seen = drain_models(ledger, client)
    found = {one.tags["workbench.version"]: one for one in client.search_model_versions("name='delays'")}
    assert sorted(found) == ["1", "2"] and found["2"].source.endswith("bundles/delays/2")
    assert client.get_run(found["1"].run_id).data.tags["workbench.run"] == run.id
    assert client.get_model_version_by_alias("delays", "champion").version == found["1"].version
    assert drain_models(ledger, client, seen) == seen  # nothing new, nothing done
    shelf.set_alias("delays", "champion", 2)
    with ledger.change() as db:
        db.execute("delete from aliases where alias='shadow'")
    client.set_registered_model_alias("delays", "mine", found["1"].version)  # the ledger is the truth
    assert drain_models(ledger, client, seen) != seen
    aliases = client.get_registered_model("delays").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"champion": str(found["2"].version)}
    shelf.add("alpha", **toy.linear_parts())
    shelf.set_alias("alpha", "latest", 1)  # a word that MLflow keeps for itself
    shelf.set_alias("delays", "canary", 1)
    drain_models(ledger, client, seen)  # one that is refused does not hold up the others
    assert "alpha" in capsys.readouterr().err
    assert client.get_model_version_by_alias("delays", "canary").version == found["1"].version


def test_without_a_shelf_there_is_nothing_to_do(ledger: Ledger) -> None:
    assert drain_models(ledger, client=None) == ()


def test_a_version_that_was_deleted_goes_there_too(ledger: Ledger) -> None:
    shelf = Shelf(ledger)
    client, _ = _client(ledger.store)
    for slope in (1.0, 2.0):
        shelf.add("delays", **toy.linear_parts(slope=slope))
    shelf.set_alias("delays", "champion", 2)
    seen = drain_models(ledger, client)
    with ledger.change() as db:
        db.execute("update versions set digest='' where version=1")
    assert drain_models(ledger, client, seen) != seen
    left = client.search_model_versions("name='delays'")
    assert [one.tags["workbench.version"] for one in left] == ["2"]
    assert client.get_model_version_by_alias("delays", "champion").version == left[0].version
