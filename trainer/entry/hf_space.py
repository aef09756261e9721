"""A Hugging Face Space that runs one job and then pauses itself: `python -m trainer.entry.hf_space`.

A Space never finishes and bills until it is paused, and it is taken for broken until it answers on its port. So the
run happens in `trainer.entry.container`, a page says how it goes, and at the end the Space asks the Hub to be paused.
"""

import http
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from trainer.entry.child import CODE_ROOT
from trainer.report.gateway import Backoff

_log = logging.getLogger("trainer.entry.hf_space")
_PORT = 7860
_PAUSE_TRIES = 8


class StatusPage:
    """Answers every GET with the state of the run: no input, no token, no log."""

    def __init__(self, port: int) -> None:
        self.state: dict[str, object] = {"state": "running"}
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(page.state).encode()
                self.send_response(http.HTTPStatus.OK)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name is the library's
                """The Hub asks every few seconds; that is no news."""

        self._server = ThreadingHTTPServer(("", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        """Answer in the background until the process ends."""
        self._thread.start()


def main(environ: Mapping[str, str]) -> int:
    """Run, show, pause. Returns only when the Space cannot be paused or this is no Space."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    page = StatusPage(int(environ.get("PORT") or _PORT))
    page.start()
    command = [sys.executable, "-m", "trainer.entry.container"]
    code = subprocess.run(command, cwd=CODE_ROOT, env=dict(environ), check=False).returncode
    page.state = {"state": "ended", "exit_code": code}
    if _pause(environ):
        threading.Event().wait()  # until the Hub ends this container: a program that ends is started again
    return code


def _pause(environ: Mapping[str, str]) -> bool:
    """Ask the Hub to pause this Space; whether it agreed."""
    space, token = environ.get("SPACE_ID"), environ.get("HF_TOKEN")
    if not space or not token:
        _log.error("this Space cannot be paused: SPACE_ID and the secret HF_TOKEN (with write access) are needed")
        return False
    origin = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    backoff = Backoff()
    wake = threading.Event()
    for _ in range(_PAUSE_TRIES):
        try:
            answer = httpx.post(
                f"{origin}/api/spaces/{space}/pause", headers={"Authorization": f"Bearer {token}"}, timeout=30
            )
        except httpx.HTTPError as error:
            said, wait_s = type(error).__name__, backoff.next_wait_s()
        else:
            if answer.is_success:
                return True
            said, wait_s = f"HTTP {answer.status_code}", backoff.next_wait_s(answer)
        _log.warning("the Space could not be paused (%s); trying again in %.0f s", said, wait_s)
        wake.wait(wait_s)
    _log.error("the Space could not be paused: pause it by hand, it goes on costing money")
    return False


if __name__ == "__main__":
    sys.exit(main(os.environ))
