"""Logs recorded from real runs of earlier versions still mean what they meant: states, views, queue, money, hashes."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.billing.domain import account
from services.gateway.domain.job_body import status_of
from services.gateway.domain.views import fold_job
from services.provider_bridge.attempt_stream import ATTEMPT
from services.provider_bridge.domain import attempt_states
from services.scheduler.domain import job_state
from services.scheduler.domain.queue_row import QueueRow, evolve_row
from services.scheduler.handlers import JOB
from services.storage.handlers import ARTIFACT_DECIDER
from services.storage.packing import DECIDER as DATASET
from shared.contracts import catalogue
from shared.contracts.account import UsageMetered
from shared.contracts.envelope import RecordedEvent
from shared.contracts.subjects import DURABLES
from shared.decider import Decider, fold
from shared.eventstore.auditor import Auditor
from shared.eventstore.hashing import StoredEvent
from tests.golden.golden_events import only_known_then
from tests.history.stored_log import HISTORIES, Expected, envelopes, read_expected, read_log

ACCOUNT: Decider[account.Account, account.AccountCommand] = Decider(
    initial=account.Unopened(), evolve=account.evolve, decide=account.decide
)
DECIDERS: dict[str, Decider[Any, Any]] = {
    "job": JOB,
    "attempt": ATTEMPT,
    "account": ACCOUNT,
    "dataset": DATASET,
    "artifact": ARTIFACT_DECIDER,
}
LOGS = sorted(HISTORIES.glob("*.jsonl"))


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded log, its rows as readers get them, and what it must add up to."""

    stored: list[StoredEvent]
    rows: list[RecordedEvent]
    expected: Expected

    def streams(self, category: str) -> dict[str, list[RecordedEvent]]:
        """The streams of a category, each in its order."""
        found: defaultdict[str, list[RecordedEvent]] = defaultdict(list)
        for row in self.rows:
            if row.category == category:
                found[row.stream].append(row)
        return found

    def story(self, job_id: UUID) -> list[RecordedEvent]:
        """Everything that happened because of a job."""
        return [row for row in self.rows if row.correlation_id == job_id]

    def table(self, service: str, table: str) -> list[dict[str, Any]]:
        """The rows that the running system had."""
        return [json.loads(line) for line in self.expected.tables[service][table]]


@pytest.fixture(scope="module", params=[pytest.param(path, id=path.stem) for path in LOGS])
def log(request: pytest.FixtureRequest) -> Log:
    path: Path = request.param
    stored = read_log(path)
    return Log(stored=stored, rows=envelopes(stored), expected=read_expected(path))


def test_every_event_is_of_a_type_we_still_read(log: Log) -> None:
    assert [row.type for row in log.rows if catalogue.decode(row) is None] == []


def test_every_hash_is_the_one_that_was_stored(log: Log) -> None:
    auditor = Auditor([], len(log.stored))
    for row in log.stored:
        auditor.take(row)
    assert auditor.finish() == []
    assert auditor.events == len(log.stored) > 0


def test_streams_and_positions_have_no_gaps(log: Log) -> None:
    assert [row.global_position for row in log.rows] == list(range(1, len(log.rows) + 1))
    for category in DECIDERS:
        for stream in log.streams(category).values():
            assert [row.stream_version for row in stream] == list(range(1, len(stream) + 1))


def test_every_job_folds_to_the_end_it_had(log: Log) -> None:
    for name, job_id in log.expected.stories.items():
        state = fold(JOB, log.streams("job")[f"job-{job_id}"])
        status = log.expected.statuses[name]
        if isinstance(state, job_state.Ended):
            assert status == ("deleted" if state.deleted else state.outcome), name
        else:
            assert status == {"Running": "running", "Queued": "queued"}[type(state).__name__], name


def test_every_attempt_of_an_ended_job_has_ended_and_every_machine_was_metered_once(log: Log) -> None:
    booked = [catalogue.decode(row) for rows in log.streams("account").values() for row in rows]
    usage = [event.attempt_id for event in booked if isinstance(event, UsageMetered)]
    ended: list[UUID] = []
    for stream, rows in log.streams("attempt").items():
        state = fold(ATTEMPT, rows)
        if isinstance(state, attempt_states.Ended):
            ended.append(UUID(stream.removeprefix("attempt-")))
        else:
            assert isinstance(fold(JOB, log.streams("job")[f"job-{rows[0].correlation_id}"]), job_state.Running)
    assert sorted(usage) == sorted(ended)


@pytest.mark.parametrize("category", sorted(DECIDERS))
def test_every_event_of_every_stream_moves_its_decider_somewhere(log: Log, category: str) -> None:
    """No recorded event was one that its own decider had no meaning for."""
    passed: set[str] = set()
    for rows in log.streams(category).values():
        decider, state = DECIDERS[category], DECIDERS[category].initial
        for row in rows:
            event = catalogue.decode(row)
            assert event is not None
            after = decider.evolve(state, event)
            if after == state:
                passed.add(row.type)
            state = after
    # What a state remembers of these is kept where it matters: the row, the view, the postings.
    assert passed <= {"attempt.cancel_requested.v1", "account.funds_released.v1", "job.wait_explained.v1"}, passed


def test_the_gateways_views_are_as_they_were(log: Log) -> None:
    views = {row["job_id"]: row["view"] for row in log.table("gateway", "jobs_view")}
    assert views.keys() == {str(job_id) for job_id in log.expected.stories.values()}
    for name, job_id in log.expected.stories.items():
        view = fold_job(job_id, log.story(job_id))
        now = json.loads(msgspec.json.encode(view, order="deterministic"))
        assert only_known_then(now, views[str(job_id)]) == views[str(job_id)], name
        if view.visible:
            assert status_of(view) == log.expected.statuses[name]


def test_the_queue_holds_the_jobs_it_held(log: Log) -> None:
    rows: dict[UUID, QueueRow | None] = {}
    for recorded in log.rows:
        event = catalogue.decode(recorded) if recorded.category == "job" else None
        if event is not None:
            job_id = UUID(recorded.stream.removeprefix("job-"))
            rows[job_id] = evolve_row(rows.get(job_id), event, job_id, recorded.global_position)
    live = [msgspec.convert(row, QueueRow) for row in log.table("scheduler", "jobs")]
    assert {row.job_id: row for row in rows.values() if row is not None} == {row.job_id: row for row in live}


def test_the_ledger_sums_to_zero_and_to_the_balances_it_had(log: Log) -> None:
    sums: defaultdict[tuple[str, str], int] = defaultdict(int)
    for stream, rows in log.streams("account").items():
        for row in rows:
            postings = json.loads(bytes(row.data)).get("postings", [])
            assert sum(posting["amount_micro_usd"] for posting in postings) == 0
            for posting in postings:
                sums[stream, posting["ledger_account"]] += posting["amount_micro_usd"]
        state = fold(ACCOUNT, rows)
        assert isinstance(state, account.Open)
        assert state.available_micro_usd == sums[stream, account.AVAILABLE]
    balances = {
        (row["stream"], row["ledger_account"]): row["amount_micro_usd"] for row in log.table("billing", "balances")
    }
    assert dict(sums) == balances


def test_the_recorded_logs_tell_at_least_these_stories() -> None:
    told = [(name, status) for path in LOGS for name, status in read_expected(path).statuses.items()]
    assert len(told) >= 8
    assert {status for _, status in told} >= {"completed", "failed", "cancelled", "running", "queued", "deleted"}
    types = {row.type for path in LOGS for row in read_log(path)}
    assert types >= {
        "account.funds_refused.v1",
        "attempt.cancelled.v1",
        "attempt.checkpoint_saved.v1",
        "attempt.failed.v1",
        "attempt.lost.v1",
        "dataset.refused.v1",
        "job.attempt_failed.v1",
        "job.cancel_requested.v1",
        "job.deleted.v1",
        "job.wait_explained.v1",
    }


def test_no_recorded_log_names_a_machine() -> None:
    for path in LOGS:
        for file in (path, path.with_suffix(".expected.json")):
            text = file.read_text(encoding="utf-8")
            assert "/tmp" not in text  # noqa: S108 - looked for, not used
            assert "/work" not in text


def test_every_durable_reads_categories_that_were_recorded() -> None:
    recorded = {row.stream.partition("-")[0] for path in LOGS for row in read_log(path)}
    since = {"provider", "worker"}  # came after the logs were recorded
    assert {category for durable in DURABLES for category in durable.categories} <= recorded | since
