"""Every refusal becomes one RFC 9457 document with the members that existing scripts read."""

import re
from pathlib import Path

import msgspec
from litestar.exceptions import (
    HTTPException,
    InternalServerException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)

from services.gateway.inbound.http import problems
from services.gateway.inbound.http.problems import Problem, from_config, from_http, from_rejected, from_unavailable
from shared.contracts.training.problems import ConfigRejected, FieldProblem
from shared.problems import CODES, Rejected, Unavailable

HTTP = Path(problems.__file__).parent
EXPECTED = {
    "validation_error": 400,
    "missing_token": 401,
    "job_not_found": 404,
    "invalid_job_state": 409,
    "version_conflict": 409,
    "attempt_superseded": 409,
    "payload_too_large": 413,
    "idempotency_key_reused": 422,
    "funds_refused": 429,
    "internal_error": 500,
    "service_unavailable": 503,
    "storage_full": 507,
}


def test_every_problem_code_has_a_status() -> None:
    assert set(problems.STATUS) == set(CODES)


def test_statuses_are_those_of_the_contract() -> None:
    assert {code: problems.STATUS[code] for code in EXPECTED} == EXPECTED


def test_only_the_problems_file_names_status_codes() -> None:
    codes = "|".join(str(status) for status in sorted(set(problems.STATUS.values())))
    named = re.compile(rf"status_code\s*=\s*\d|\b({codes})\b")
    faults = [
        f"{path.name}: {line.strip()}"
        for path in HTTP.glob("*.py")
        if path.name not in {"problems.py", "docs.py"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if named.search(line) and '"""' not in line and "le=500" not in line
    ]
    assert faults == []


def test_document_has_the_standard_and_the_compatible_members() -> None:
    document = Problem(code="job_not_found", detail="no", fields={"job_id": "x"}).document("GET", "/p", "r1")
    assert document == {
        "job_id": "x",
        "type": "/problems/job_not_found",
        "title": CODES["job_not_found"],
        "status": 404,
        "detail": "no",
        "instance": "/p",
        "code": "job_not_found",
        "correlation_id": "r1",
        "success": False,
        "error": "no",
    }


def test_fields_of_a_refusal_never_replace_standard_members() -> None:
    document = Problem(code="not_found", detail="no", fields={"status": 200, "code": "fine"}).document("GET", "/", "")
    assert (document["status"], document["code"]) == (404, "not_found")


def test_delete_of_a_running_job_keeps_the_documented_status() -> None:
    problem = Problem(code="invalid_job_state", detail="it runs")
    assert (problem.status("DELETE"), problem.status("POST")) == (400, 409)


def test_unavailable_says_when_to_come_back() -> None:
    problem = from_unavailable(Unavailable("no scheduler is running", retry_after_s=7))
    assert (problem.status("GET"), problem.headers["Retry-After"]) == (503, "7")


def test_refusal_under_a_code_nobody_registered_leaks_nothing() -> None:
    problem = from_rejected(Rejected("secret_code", "password=hunter2", key="value"))
    assert (problem.code, problem.detail, dict(problem.fields)) == ("internal_error", CODES["internal_error"], {})


def test_server_error_of_the_framework_leaks_nothing() -> None:
    problem = from_http(InternalServerException("SELECT secret FROM table"))
    assert (problem.code, problem.detail) == ("internal_error", CODES["internal_error"])


def test_framework_refusals_use_our_codes() -> None:
    assert from_http(NotFoundException()).code == "not_found"
    assert from_http(MethodNotAllowedException(headers={"Allow": "GET"})).headers == {"Allow": "GET"}
    assert from_http(HTTPException(status_code=413, detail="Request Entity Too Large")).code == "payload_too_large"
    assert from_http(HTTPException(status_code=400, detail="JSON is malformed: …")).code == "invalid_payload"
    assert from_http(HTTPException(status_code=418)).code == "validation_error"


def test_unknown_key_of_a_body_is_the_field() -> None:
    extra = [{"message": "Object contains unknown field `colour`", "key": "data", "source": "body"}]
    (error,) = from_http(ValidationException("", extra=extra)).fields["errors"]
    assert error["field"] == "colour"
    assert error["advice"]


def test_unknown_key_inside_a_member_names_the_path() -> None:
    extra = [{"message": "Object contains unknown field `colour`", "key": "paint", "source": "body"}]
    (error,) = from_http(ValidationException("", extra=extra)).fields["errors"]
    assert error["field"] == "paint.colour"


def test_missing_body_says_so() -> None:
    (error,) = from_http(ValidationException("", extra=[{"message": "'data'", "key": "data"}])).fields["errors"]
    assert error == {"field": "body", "message": "a JSON body is needed"}


def test_config_problems_are_all_listed_with_advice() -> None:
    found = [FieldProblem(field=name, code="unknown_key", message="?", advice="Remove it.") for name in ("a", "b")]
    problem = from_config(ConfigRejected(found))
    assert [error["field"] for error in problem.fields["errors"]] == ["a", "b"]
    assert msgspec.json.encode(problem.document("POST", "/", ""))
