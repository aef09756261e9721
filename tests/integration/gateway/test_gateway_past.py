"""The queue, an account and what-if over HTTP: a small month behind real services."""

import pytest

from shared.contracts.job import JobDispatched, JobWaitExplained
from tests.integration.gateway.conftest import OpenSite, Site
from tests.support import bulk_log
from tests.support.bulk_log import PastEvent
from tests.support.log import LogDatabase
from tests.support.month import Limits, Shape, a_month

SHAPE = Shape(jobs=40, days=0.1, users=3, limits=Limits(in_all=3, per_user=2))


@pytest.fixture
async def events(log_database: LogDatabase) -> list[PastEvent]:
    made = a_month(3, SHAPE)
    await bulk_log.write(log_database.superuser_dsn, made)
    return made


@pytest.fixture
async def told(events: list[PastEvent], open_site: OpenSite) -> Site:  # noqa: ARG001 - the log comes first
    return await open_site("scheduler", "billing")


async def test_queue_account_and_whatif_tell_the_past(told: Site, events: list[PastEvent]) -> None:
    place = next(n for n, one in enumerate(events, start=1) if isinstance(one.event, JobWaitExplained))
    moment = events[place - 1].recorded_at.isoformat()
    by_position = (await told.http.get("/api/v1/queue", params={"at": str(place)})).json()
    by_time = (await told.http.get("/api/v1/queue", params={"at": moment})).json()
    assert by_position["limits"] == {"global": 3, "per_user": 2}
    assert by_position["up_to"] == place
    assert {job["reason"] for job in by_position["waiting"]} & {"global_limit", "user_limit"}
    assert by_time["up_to"] >= place
    assert by_time["at"] == by_position["at"] == moment
    now = (await told.http.get("/api/v1/queue")).json()
    assert (now["running"], now["waiting"]) == ([], [])

    half = (await told.http.get("/api/v1/accounts/user-01", params={"at": str(len(events) // 2)})).json()
    whole = (await told.http.get("/api/v1/accounts/user-01", params={"month": "2026-10"})).json()
    assert half["month"] == whole["month"] == "2026-10"
    assert half["sum_micro_usd"] == whole["sum_micro_usd"] == 0
    assert 0 < half["jobs_total"] < whole["jobs_total"]
    assert half["balances"]["spent"] < whole["balances"]["spent"]
    assert whole["balances"]["reserved"] == 0

    report = (await told.http.post("/api/v1/whatif", json={})).json()
    written = sum(isinstance(one.event, JobDispatched | JobWaitExplained) for one in events)
    decisions = report["decisions"]
    assert decisions["recorded"] == decisions["reproduced"] == written + decisions["retries"]
    asked = {"policy": {"limits": {"in_all": 20, "per_user": 20}}, "since": moment, "jobs_limit": 3}
    wide = (await told.http.post("/api/v1/whatif", json=asked)).json()
    assert wide["what_if"]["wait"]["mean_s"] < wide["happened"]["wait"]["mean_s"]
    assert wide["carried_over"] > 0
    assert len(wide["jobs"]) == 3


async def test_nonsense_is_refused_by_its_name(told: Site) -> None:
    client = told.http
    refused = {
        "at": await client.get("/api/v1/queue", params={"at": "yesterday"}),
        "month": await client.get("/api/v1/accounts/user-01", params={"month": "2026-13"}),
        "since": await client.post("/api/v1/whatif", json={"since": "soon"}),
        "until": await client.post("/api/v1/whatif", json={"until": "1999-01-01"}),
    }
    for field, answer in refused.items():
        assert answer.status_code == 400, field
        assert answer.headers["content-type"] == "application/problem+json"
        assert [error["field"] for error in answer.json()["errors"]] == [field]
    early = await client.get("/api/v1/accounts/user-01", params={"at": "2020-01-01"})
    assert early.status_code == 400
    unknown = await client.get("/api/v1/accounts/nobody", params={"month": "2026-10"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    misspelt = await client.post("/api/v1/whatif", json={"policy": {"limits": {"in_al": 3}}})
    assert misspelt.status_code == 400
    assert "in_al" in misspelt.json()["detail"]
    window = await client.post("/api/v1/whatif", json={"since": "20", "until": "10"})
    assert (window.status_code, window.json()["field"]) == (400, "until")


async def test_the_document_describes_the_three(told: Site) -> None:
    paths = (await told.http.get("/openapi.json")).json()["paths"]
    assert {"at"} <= {parameter["name"] for parameter in paths["/api/v1/queue"]["get"]["parameters"]}
    assert {"month", "at"} <= {one["name"] for one in paths["/api/v1/accounts/{owner}"]["get"]["parameters"]}
    assert "post" in paths["/api/v1/whatif"]
