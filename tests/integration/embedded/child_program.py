"""A small real service: `python child_program.py <kind>`, told everything else by its environment, as ours are.

`service` waits for SIGTERM, `gateway` also answers HTTP, `broken` prints and dies. Each writes its end to a journal,
with whether Postgres and NATS still took connections then.
"""

import http.server
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

NAME = os.environ["NATS_USER"]
JOURNAL = Path(os.environ["TUNEWRIGHT_DATA_DIR"]) / "journal"
stopped = threading.Event()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def write_journal() -> None:
    state = json.loads((JOURNAL.parent / "run" / "state.json").read_text(encoding="utf-8"))
    postgres = int(state["log_dsn"].rpartition("port=")[2])
    nats = int(state["nats_url"].rpartition(":")[2])
    line = json.dumps({"name": NAME, "postgres": accepts(postgres), "nats": accepts(nats)})
    with JOURNAL.open("a", encoding="utf-8") as journal:
        journal.write(f"{line}\n")


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # the base class's name
        body = json.dumps(dict(os.environ)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(kind: str) -> int:
    if kind == "broken":
        sys.stdout.write("no such table: spoons\n")
        return 3
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopped.set())
    print(f"{NAME} is up", flush=True)  # noqa: T201 - the child's own log, and who asks it to stop waits for this line
    if kind == "gateway":
        address = (os.environ["GATEWAY_HOST"], int(os.environ["GATEWAY_PORT"]))
        server = http.server.ThreadingHTTPServer(address, Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    stopped.wait()
    write_journal()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
