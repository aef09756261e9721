"""models list and show: the registry of what was trained."""

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

from cyclopts import App, Parameter

from services.cli.exit_codes import DONE
from services.cli.options import Session
from services.cli.terminal import ago, size

APP = App(name="models", help="List trained models, or show one.")


@APP.default
@APP.command(name="list")
def list_(*, limit: Annotated[int, Parameter(name=["--limit", "-n"])] = 50, session: Session) -> int:
    """List trained models, newest first.

    :param limit: how many (at most 500).
    """
    answer = session.gateway.get("/api/v1/models", limit=limit)
    if session.terminal.as_json:
        session.terminal.json(answer)
        return DONE
    rows = [_row(model, whole=session.terminal.is_pipe) for model in answer["models"]]
    session.terminal.rows(("NAME", "FAMILY", "KIND", "BASE", "STEPS", "LOSS", "SIZE", "CREATED", "JOB"), rows)
    hidden = answer["total"] - len(answer["models"])
    if hidden > 0:
        session.terminal.say(f"{hidden} more; --limit shows more of them")
    return DONE


@APP.command
def show(model: str, *, session: Session) -> int:
    """Show one model: where it comes from, its files with their digests, and where it was delivered.

    :param model: its name (the newest of that name), or the id of the job that made it.
    """
    found: dict[str, Any] = session.gateway.get(f"/api/v1/models/{quote(model, safe='')}")
    if session.terminal.as_json:
        session.terminal.json(found)
        return DONE
    session.terminal.facts(
        {
            "name": found["name"],
            "job": found["job_id"],
            "family": found["family"],
            "kind": found["kind"],
            "base model": found["base_model"],
            "config": found["config_name"],
            "config hash": found["config_hash"],
            "steps": _text(found["steps"], "{}"),
            "final loss": _text(found["final_loss"], "{:.4g}"),
            "created": found["created_at"],
            "samples": _text(len(found["samples"]) or None, "{} pictures"),
            "missing": ", ".join(found["missing"]) or None,
            "deliveries": "; ".join(_delivery(each) for each in found["deliveries"]) or None,
        }
    )
    session.terminal.say("")
    files = [(file["name"], size(file["size_bytes"]), file["sha256"]) for file in found["files"]]
    session.terminal.rows(("FILE", "SIZE", "SHA256"), files)
    return DONE


def _row(model: dict[str, Any], *, whole: bool) -> Sequence[str]:
    bytes_ = sum(file["size_bytes"] for file in model["files"])
    return (
        str(model["name"]),
        str(model["family"] or ""),
        str(model["kind"]),
        str(model["base_model"] or ""),
        _text(model["steps"], "{}") or "",
        _text(model["final_loss"], "{:.4g}") or "",
        str(bytes_) if whole else size(bytes_),
        str(model["created_at"]) if whole else ago(model["created_at"]),
        str(model["job_id"]),
    )


def _delivery(delivery: dict[str, Any]) -> str:
    if delivery["status"] == "delivered":
        return f"{delivery['what']} at {delivery['url'] or delivery['target']}"
    return f"{delivery['what']} not at {delivery['target']}: {delivery['message']}"


def _text(value: object, pattern: str) -> str | None:
    return None if value is None else pattern.format(value)
