"""Stands where the trainer stands at the `local` provider, and hands the run to a vendor's program instead.

`hand_over.py RUNPOD_API_URL COG_URL run --spec FILE --token-file FILE ...`: the job's `modelspec_comment` says which.
Everything else of the control plane is as it is; the trainer inside the vendor's program reports to its gateway.
"""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.request import Request, urlopen

INTERNAL = 70


def by_runpod(api_url: str, given: dict[str, Any]) -> int:
    """Through the queue, with the vendor's client; the exit code that the handler told."""
    os.environ["RUNPOD_ENDPOINT_BASE_URL"] = api_url
    runpod: Any = import_module("runpod")  # only now: it reads the address when it is imported
    runpod.api_key = os.environ["TRAINER_TEST_RUNPOD_KEY"]
    job: Any = runpod.Endpoint("ep").run({"input": given})

    def on_term(_number: int, _frame: FrameType | None) -> None:
        job.cancel()

    signal.signal(signal.SIGTERM, on_term)
    while job.status() not in {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}:
        time.sleep(0.2)  # the pace of asking
    output = job.output()
    print(output)  # noqa: T201 - the attempt's log
    return int(output.get("exit_code", INTERNAL)) if output else INTERNAL


def by_cog(url: str, given: dict[str, Any]) -> int:
    """In one call to Cog's server."""
    body = {"input": {"run_spec": json.dumps(given["run_spec"]), "token": given["token"]}}
    request = Request(f"{url}/trainings", json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urlopen(request, timeout=600) as answer:  # noqa: S310 - a loopback address of the test
        told = json.load(answer)
    print(told["status"], told.get("error"))  # noqa: T201 - the attempt's log
    return 0 if told["status"] == "succeeded" else INTERNAL


def main(words: list[str]) -> int:
    runpod_url, cog_url, *rest = words
    spec = json.loads(Path(rest[rest.index("--spec") + 1]).read_text(encoding="utf-8"))
    token = Path(rest[rest.index("--token-file") + 1]).read_text(encoding="utf-8").strip()
    given = {"run_spec": spec, "token": token}
    if spec["config"]["--modelspec_comment"] == "runpod":
        return by_runpod(runpod_url, given)
    return by_cog(cog_url, given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
