"""A trainer's report lines as people read them: log text, the stage a run is in, how far it is."""

from collections.abc import Callable, Iterable
from typing import Any, cast

LOG_TYPES = ("hello", "phase", "log", "warning", "checkpoint", "delivery", "gpu_fault", "command", "done", "failed")
"""Report types that have a line in a job's log."""

PROGRESS_TYPES = ("phase", "log", "warning", "metrics")


def log_text(line: dict[str, Any]) -> str:
    """One report as log text, without its last newline: `2026-11-22T01:02:03Z [info] message`."""
    return f"{line.get('ts', '')} {_said(str(line.get('type')), _data(line))}"


def log_tail(lines: Iterable[dict[str, Any]], max_bytes: int) -> str:
    """The log as text, at most its last `max_bytes` bytes, beginning at a whole line."""
    text = "".join(log_text(line) + "\n" for line in lines).encode()
    if len(text) <= max_bytes:
        return text.decode()
    return text[-max_bytes:].partition(b"\n")[2].decode()


def progress(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`stage`, `last_log`, `progress` (percent) and the newest `step`, `total_steps`, `loss`, … of a run."""
    found: dict[str, Any] = {"stage": None, "last_log": None, "progress": None}
    for line in lines:
        data = _data(line)
        match line.get("type"):
            case "phase":
                found["stage"] = data.get("phase")
            case "log" | "warning":
                found["last_log"] = data.get("message")
            case "metrics":
                found |= {name: data.get(name) for name in ("step", "total_steps", "loss", "lr", "eta_s")}
                found["progress"] = _percent(data)
            case _:
                pass
    return found


def metric_point(line: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one metrics line, with when and by which attempt."""
    return {"ts": line.get("ts"), "attempt": line.get("attempt"), "seq": line.get("seq"), **_data(line)}


def _percent(data: dict[str, Any]) -> float | None:
    step, total = data.get("step"), data.get("total_steps")
    if not isinstance(step, int | float) or not isinstance(total, int | float) or total <= 0:
        return None
    return round(min(100.0, 100.0 * step / total), 2)


def _said(type_: str, data: dict[str, Any]) -> str:
    speak = _WORDS.get(type_)
    return speak(data) if speak else f"[info] {type_}"


def _phase(data: dict[str, Any]) -> str:
    detail = data.get("detail")
    return f"[info] {data.get('phase')}" + (f": {detail}" if detail else "")


def _delivery(data: dict[str, Any]) -> str:
    what, target = data.get("what"), data.get("target")
    if data.get("status") != "delivered":
        return f"[warning] {what} not delivered to {target}: {data.get('message')}"
    url = data.get("url")
    return f"[info] {what} delivered to {target}" + (f": {url}" if url else "")


def _failed(data: dict[str, Any]) -> str:
    advice = data.get("advice")
    return f"[error] {data.get('kind')}: {data.get('message')}" + (f" ({advice})" if advice else "")


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "hello": lambda data: f"[info] trainer started on {data.get('device')}",
    "phase": _phase,
    "log": lambda data: f"[{data.get('level', 'info')}] {data.get('message', '')}",
    "warning": lambda data: f"[warning] {data.get('message', '')}",
    "checkpoint": lambda data: f"[info] checkpoint saved at step {data.get('step')}",
    "gpu_fault": lambda data: f"[error] GPU {data.get('gpu')} is faulty: {data.get('kind')}: {data.get('detail')}",
    "command": lambda data: f"[info] {data.get('name')} as asked: {data.get('outcome')}",
    "delivery": _delivery,
    "done": lambda data: f"[info] done after {data.get('steps')} steps",
    "failed": _failed,
}


def _data(line: dict[str, Any]) -> dict[str, Any]:
    data = line.get("data")
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}
