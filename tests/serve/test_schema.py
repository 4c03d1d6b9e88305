"""What the service's own schema allows, and what it forbids, asked by schemathesis over HTTP: never a 5xx."""

from collections import Counter
from typing import Any

import pytest
import requests
from conftest import TOKEN, Service
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")
OWNER = {"authorization": f"Bearer {TOKEN}"}


def campaign(service: Service, cases: int) -> Counter[int]:
    "Statuses of so many generated requests, good and bad ones in turn."
    url = f"http://127.0.0.1:{service.port}"
    schema = schemathesis.openapi.from_url(url + "/openapi.json", headers=OWNER)
    session, seen, wrong = requests.Session(), Counter(), []
    mode = schemathesis.GenerationMode
    routes = [("/predict", "POST"), ("/feedback", "POST")]
    for path, method in routes:
        for kind in (mode.POSITIVE, mode.NEGATIVE):

            @given(case=schema[path][method].as_strategy(generation_mode=kind))
            @settings(
                max_examples=cases // (2 * len(routes)), deadline=None, database=None,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def ask(case: Any) -> None:
                found = case.call(base_url=url, session=session, headers=OWNER, timeout=30)
                seen[found.status_code] += 1
                body = found.json()
                if found.status_code >= 400 and not (body["detail"][0]["msg"] and "loc" in body["detail"][0]):
                    wrong.append(found.text[:300])

            ask()
    session.close()
    assert not wrong
    return seen


def test_a_few_hundred_generated_requests_meet_no_5xx(service: Service) -> None:
    seen = campaign(service, 120)
    assert (
        sum(seen.values()) >= 60 and set(seen) <= {200, 400, 401, 405, 415, 422} and seen[422] and seen[200]
    )


@pytest.mark.slow
def test_ten_thousand_generated_requests_meet_no_5xx(service: Service) -> None:
    seen = campaign(service, 12_000)
    assert sum(seen.values()) >= 10_000 and not [status for status in seen if status >= 500], seen
