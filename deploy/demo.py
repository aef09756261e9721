"""`just demo`: one real fine-tune on this machine, from curl to a LoRA file, watched live and explained afterwards.

It starts embedded mode on free ports in `.demo/`, draws its training pictures from scikit-learn's handwritten digits,
submits the job with the tutorial's curl, follows it, and stops everything. What it made stays for a closer look.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.embedded.process import free_port

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / ".demo"
PRICE_MICRO_USD_PER_HOUR = 360_000
"""What the demo says an hour of this machine costs, so that there is a ledger to look at. The default is 0."""
_READY_S = 120.0
_JOB_S = 600.0
_POLL_S = 0.3

console = Console()


class DemoError(Exception):
    """What went wrong and where to look."""


def say(text: str) -> None:
    """One step, as the person sees it."""
    console.print(f"[bold cyan]»[/] {text}")


@contextmanager
def embedded(port: int) -> Generator[str]:
    """Embedded mode as a child process; gives its URL, and stops it at the end."""
    log_path = DEMO / "up.log"
    command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(DEMO / "data"), "--port", str(port)]
    env = {**os.environ, "BILLING_LOCAL_MICRO_USD_PER_HOUR": str(PRICE_MICRO_USD_PER_HOUR)}
    with log_path.open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        await_ready(url, child, log_path)
        yield url
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def await_ready(url: str, child: subprocess.Popen[bytes], log_path: Path) -> None:
    """Returns when the gateway says that every part is ready; raises DemoError with the log's end otherwise."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and child.poll() is None:
        try:
            if httpx.get(f"{url}/api/cloud/health/ready", timeout=2).is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet: that is what we wait for
        time.sleep(_POLL_S)
    tail = log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise DemoError(f"embedded mode did not become ready; the end of {log_path}:\n{tail}")


def training_pictures() -> Path:
    """100 real handwritten digits, tinted red on yellow, each with its caption."""
    folder = DEMO / "digits"
    if not folder.exists():
        python = ROOT / ".venv-trainer" / "bin" / "python"
        subprocess.run([python, "-m", "trainer.demo_data", folder, "--count", "100"], cwd=ROOT, check=True)
    return folder


def request_body(pictures: Path) -> dict[str, Any]:
    """The tutorial's submit body: `--key` config and dataloader list, with this machine's folders filled in."""
    config = json.loads((ROOT / "trainer" / "demo_config.json").read_text(encoding="utf-8"))
    loader = json.loads((ROOT / "trainer" / "demo_dataloader.json").read_text(encoding="utf-8"))
    config["--pretrained_model_name_or_path"] = str(ROOT / "trainer" / "fixtures" / "tiny-flux-digits")
    loader[0]["instance_data_dir"] = str(pictures)
    return {"config": config, "dataloader_config": loader, "tracker_run_name": "demo"}


def submit(url: str, body: dict[str, Any]) -> str:
    """Submits with curl, as the tutorial does; gives the job id. Without curl on the machine, the same by httpx."""
    body_file = DEMO / "submit.json"
    body_file.write_text(json.dumps(body, indent=2), encoding="utf-8")
    target = f"{url}/api/cloud/jobs/submit?provider=local"
    command = ["curl", "-s", "-X", "POST", target, "-H", "Content-Type: application/json", "-d", f"@{body_file}"]
    console.print(f"  [dim]{shlex.join(command)}[/]")
    if shutil.which("curl"):
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    else:
        text = httpx.post(target, json=body, timeout=30).text
    answer = json.loads(text)
    if not answer.get("success", False):
        raise DemoError(f"the job was refused: {text}")
    return str(answer["job_id"])


def follow(url: str, job_id: str) -> dict[str, Any]:
    """Shows the job's stage, step and loss until it ends; the job as it ended."""
    columns = (TextColumn("  {task.description:<26}"), BarColumn(), TextColumn("{task.fields[note]}"))
    deadline = time.monotonic() + _JOB_S
    with httpx.Client(base_url=url, timeout=10) as http, Progress(*columns, TimeElapsedColumn()) as bar:
        task = bar.add_task("submitted", total=100, note="")
        while time.monotonic() < deadline:
            job = http.get(f"/api/cloud/jobs/{job_id}").raise_for_status().json()["job"]
            live = http.get(f"/api/cloud/jobs/{job_id}/inline-progress").raise_for_status().json()
            percent = 100.0 if job["is_terminal"] else float(live["progress"] or 0)
            note = f"loss {live['loss']:.3f}" if isinstance(live.get("loss"), float) else ""
            bar.update(task, completed=percent, description=f"{job['status']} · {live.get('stage') or '…'}", note=note)
            if job["is_terminal"]:
                return job
            time.sleep(_POLL_S)
    raise DemoError(f"the job did not end within {_JOB_S:.0f} s")


def fetch(url: str, job_id: str) -> tuple[Path, Path | None]:
    """Downloads the LoRA and the last rendered picture of the job."""
    outputs = DEMO / "outputs" / job_id
    outputs.mkdir(parents=True, exist_ok=True)
    listed = httpx.get(f"{url}/api/v1/jobs/{job_id}/artifacts", timeout=10).raise_for_status().json()["artifacts"]
    wanted = [item for item in listed if item["name"] == "pytorch_lora_weights.safetensors"]
    pictures = sorted((item for item in listed if item["name"].endswith(".png")), key=lambda item: item["stored_at"])
    if not wanted:
        raise DemoError(f"job {job_id} delivered no LoRA: {[item['name'] for item in listed]}")
    saved: list[Path] = []
    for item in [*wanted, *pictures[-1:]]:
        path = outputs / Path(item["name"]).name
        content = httpx.get(f"{url}/api/cloud/storage/{item['bucket']}/{item['object_key']}", timeout=60)
        path.write_bytes(content.raise_for_status().content)
        saved.append(path)
    return saved[0], saved[1] if len(saved) > 1 else None


def timeline(url: str, job_id: str) -> Table:
    """The job's whole history from the log, with the seconds since it was submitted."""
    events = httpx.get(f"{url}/api/v1/jobs/{job_id}/events", timeout=10).raise_for_status().json()["events"]
    table = Table("position", "seconds", "event", "what", box=None, header_style="dim")
    start = datetime.fromisoformat(events[0]["recorded_at"])
    for event in events:
        after = (datetime.fromisoformat(event["recorded_at"]) - start).total_seconds()
        table.add_row(str(event["global_position"]), f"{after:.2f}", event["type"], gist(event["data"]))
    return table


def gist(data: dict[str, Any]) -> str:
    """The member of an event that says most to a person, if it has one of those."""
    amount = data.get("amount_micro_usd")
    step = data.get("checkpoint", {}).get("step")
    reserved = data.get("reserved_micro_usd")
    told = [
        data.get("name"),
        None if step is None else f"step {step}",
        None if amount is None else f"${amount / 1e6:.6f}",
        None if reserved is None else f"${reserved / 1e6:.6f}",
        data.get("reason"),
    ]
    return next((text for text in told if text), "")


def relative(path: Path) -> str:
    """A path as a person in the repository would type it."""
    return str(path.relative_to(ROOT))


def how_to_go_on(job_id: str) -> None:
    """What the person can do next with what the demo made."""
    say("Go on:")
    console.print("  ./tunewright up --data-dir .demo/data              the same data, again (API at /docs)")
    console.print(f"  ./tunewright --data-dir .demo/data describe {job_id[:13]}")
    console.print(f"  ./tunewright --data-dir .demo/data events {job_id[:13]}")
    console.print("  ./tunewright --data-dir .demo/data verify         every hash of the log")


def run_demo() -> None:
    """The whole road, once."""
    started = time.monotonic()
    DEMO.mkdir(exist_ok=True)
    pictures = training_pictures()
    say(f"Training pictures: {relative(pictures)} (scikit-learn's handwritten digits, red on yellow)")
    say("Starting Postgres, NATS, the relay and the five services …")
    with embedded(free_port()) as url:
        say(f"Tunewright is up at {url} — API at {url}/docs. Submitting with the tutorial's curl:")
        job_id = submit(url, request_body(pictures))
        say(f"Accepted as job {job_id}")
        job = follow(url, job_id)
        if job["status"] != "completed":
            raise DemoError(f"the job ended as {job['status']}: {job.get('error_message')}")
        lora, picture = fetch(url, job_id)
        say("What happened, from the log:")
        console.print(timeline(url, job_id))
    say(f"LoRA:    {relative(lora)} ({lora.stat().st_size / 1024:.0f} KiB)")
    if picture is not None:
        say(f"Picture: {relative(picture)}")
    hourly = PRICE_MICRO_USD_PER_HOUR / 1e6
    say(f"Cost:    ${job['cost_usd']:.6f} (this machine priced at ${hourly:.2f} an hour by the demo)")
    how_to_go_on(job_id)
    say(f"Done in {time.monotonic() - started:.0f} s.")


def main() -> int:
    """Exit code 0 when the LoRA is there, 1 with a message otherwise."""
    try:
        run_demo()
    except DemoError as failure:
        console.print(f"[bold red]The demo failed:[/] {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
