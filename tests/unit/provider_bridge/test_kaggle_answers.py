"""What Kaggle's answers mean: refusals by code and by text, moments, spans, hours, logs."""

from datetime import UTC, datetime

import pytest

from services.provider_bridge.outbound.egress import Forbidden, VendorRefused
from services.provider_bridge.outbound.ports import CredentialRefused, NoCapacity, NoFunds, StartRefused
from services.provider_bridge.outbound.vendors.kaggle_answers import (
    error_in,
    hours_left,
    lines_of,
    log_event,
    log_events,
    moment,
    refusal_of,
    seconds,
)
from shared.contracts.kaggle import KernelJob, exit_code_in, kernel_script, slug_of
from shared.ids import new_id
from shared.problems import Unavailable


@pytest.mark.parametrize(
    ("code", "kind"),
    [(401, CredentialRefused), (403, Forbidden), (404, VendorRefused), (429, Unavailable), (503, Unavailable)],
)
def test_an_error_inside_an_answer_that_says_200_is_an_error(code: int, kind: type[Exception]) -> None:
    error = error_in({"code": code, "message": "as Kaggle says"})
    assert type(error) is kind
    assert "as Kaggle says" in str(error)


@pytest.mark.parametrize("content", [{}, {"code": 0}, {"code": 200}, {"code": "429"}, {"status": "RUNNING"}])
def test_an_answer_without_a_code_of_an_error_is_none(content: dict[str, object]) -> None:
    assert error_in(content) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Maximum batch GPU session count of 2 reached.", NoCapacity),
        ("You have exceeded your weekly GPU quota of 30 hours.", NoFunds),
        ("Accelerator Quota Exceeded", NoFunds),
        ("Invalid kernel source", StartRefused),
    ],
)
def test_a_push_that_was_not_run_says_why(text: str, kind: type[StartRefused]) -> None:
    refusal = refusal_of(text)
    assert type(refusal) is kind
    assert text in refusal.message


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-11-29T01:02:03.250Z", 250_000),
        ("2026-11-29T01:02:03.25", 250_000),
        ("2026-11-29T01:02:03.250123456Z", 250_123),
        ("2026-11-29T01:02:03Z", 0),
    ],
)
def test_a_moment_is_read_however_many_digits_it_has(text: str, micros: int) -> None:
    assert moment(text) == datetime(2026, 11, 29, 1, 2, 3, micros, tzinfo=UTC)


@pytest.mark.parametrize("text", [None, "", "soon", 12, "2026-13-01T00:00:00Z"])
def test_what_is_no_moment_and_no_span_is_none(text: object) -> None:
    assert moment(text) is None
    assert seconds(text) is None


def test_hours_left_are_those_neither_used_nor_reserved() -> None:
    quota = {"totalTimeAllowed": "108000s", "timeUsed": "36000.500s", "timeReserved": "3599.5s"}
    assert hours_left({"gpuQuota": quota}) == (19.0, 30.0)
    assert hours_left({"gpuQuota": {"totalTimeAllowed": "10s", "timeUsed": "11s"}}) == (0.0, 10 / 3600)
    assert hours_left({}) is None
    assert hours_left({"gpuQuota": {"timeUsed": "1s"}}) is None


def test_a_log_is_read_as_events_or_as_text() -> None:
    stored = '[{"stream_name":"stdout","time":1.5,"data":"one\\ntwo\\n"},{"data":"three"},7]'
    assert lines_of(log_events(stored)) == ["one", "two", "three"]
    assert lines_of(log_events("no json\nat all")) == ["no json", "at all"]
    assert lines_of([log_event('{"data":"live\\n"}'), log_event("{broken")]) == ["live", "{broken"]


def test_the_exit_code_is_the_last_one_that_the_script_wrote() -> None:
    assert exit_code_in(["tunewright: exit code 1", "tunewright: exit code 76", "bye"]) == 76
    assert exit_code_in(["the trainer said: tunewright: exit code 3", "exit code 4"]) is None
    assert exit_code_in([]) is None


def test_a_label_is_its_own_slug() -> None:
    label = f"tw-0a1b2c3d-{new_id().hex}-1234"
    assert slug_of(label) == label


@pytest.mark.parametrize("title", ["abc", "-- --", "x" * 51])
def test_a_title_from_which_kaggle_would_make_another_kernel_is_refused(title: str) -> None:
    with pytest.raises(ValueError, match="letters and digits"):
        slug_of(title)


def test_the_script_is_a_program_whatever_stands_in_the_job() -> None:
    nasty = "a \"quoted\" 'path'\\ with \n lines and {braces} ü"
    script = kernel_script(KernelJob(input={"token": nasty}, source={"folder": nasty}))
    found: dict[str, str] = {}
    exec(compile(script.partition("\n\n\n")[0], "kernel", "exec"), found)  # noqa: S102 - the head holds the job
    assert "JOB" in found
