"""No secret reaches a log line, wherever in it the secret stands."""

import io
import json
import logging
from collections.abc import Iterator
from uuid import UUID

import pytest
import structlog

from shared.observability.logging import REDACTED, configure, redact, redact_text
from shared.settings import Secret


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Where log lines go; the configuration before is put back."""
    before, handlers, level = structlog.get_config(), logging.getLogger().handlers[:], logging.getLogger().level
    stream = io.StringIO()
    configure("billing", stream=stream)
    yield stream
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


@pytest.mark.parametrize(
    "key", ["password", "nats_password", "token", "attempt_token", "Authorization", "api_key", "database_url", "secret"]
)
def test_value_is_hidden_by_its_key(key: str) -> None:
    assert redact(None, "info", {key: "hunter2"}) == {key: REDACTED}


@pytest.mark.parametrize("key", ["token_sha256", "tokens_seen", "secretary", "position", "user"])
def test_value_beside_it_is_shown(key: str) -> None:
    assert redact(None, "info", {key: "shown"}) == {key: "shown"}


@pytest.mark.parametrize(
    "text",
    [
        "could not reach postgresql://billing:hunter2@db/x",
        "refused: Authorization: Bearer hunter2hunter2",
        "key stk_hunter2hunter2 is not known",
        "https://host/path?token=hunter2&x=1",
    ],
)
def test_secret_inside_a_text_is_hidden(text: str) -> None:
    assert "hunter2" not in redact_text(text)


def test_secret_in_nested_values_and_secret_objects_are_hidden() -> None:
    line = redact(None, "info", {"a": [{"password": "hunter2"}], "b": {"c": Secret("hunter2")}, "d": Secret("hunter2")})
    assert "hunter2" not in str(line)


def test_line_is_one_json_object_with_service_level_and_time(lines: io.StringIO) -> None:
    structlog.stdlib.get_logger().info("billing.job.settled", job_id=UUID(int=7), password="hunter2")
    line = json.loads(lines.getvalue())
    assert (line["event"], line["service"], line["level"]) == ("billing.job.settled", "billing", "info")
    assert line["job_id"] == str(UUID(int=7))
    assert line["password"] == REDACTED
    assert "timestamp" in line


def test_traceback_is_logged_without_the_secrets_in_it(lines: io.StringIO) -> None:
    try:
        int("postgresql://billing:hunter2@db/x")
    except ValueError:
        structlog.stdlib.get_logger().exception("billing.job.failed")
    line = json.loads(lines.getvalue())
    assert "ValueError" in line["exception"]
    assert "hunter2" not in lines.getvalue()


def test_lines_of_the_standard_library_have_the_same_shape(lines: io.StringIO) -> None:
    logging.getLogger("somebody").warning("could not open %s", "postgresql://u:hunter2@db/x")
    line = json.loads(lines.getvalue())
    assert line["level"] == "warning"
    assert line["event"].startswith("could not open")
    assert "hunter2" not in lines.getvalue()
