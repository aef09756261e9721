"""Lambda Cloud's API on loopback as its documents of 2026 have it: types, machines, launch and terminate.

A machine knows nothing of a job. It goes from booting to active, and costs money until it is terminated, whatever
becomes of what runs on it; the bill goes by the second here. With `folder`, each new machine really boots: its user
data is run as cloud-init runs it, in a folder of its own.
"""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from shared.clock import Clock, utc_now
from tests.simulators.faults import Bill, Simulator
from tests.simulators.loopback import Answer, Call

KEY = "secret_lambda-test_77aa"
REGIONS = ("us-east-1", "us-west-2", "europe-central-1")
FIELDS = {"region_name", "instance_type_name", "ssh_key_names", "file_system_names", "file_system_mounts", "hostname"}
FIELDS_TOO = {"name", "image", "user_data", "tags", "firewall_rulesets"}
_LENIENT = 0.9
"""Two calls of an exact pace may arrive a little closer to each other than they were sent."""
TYPES: dict[str, dict[str, Any]] = {
    name: {
        "name": name,
        "description": f"{gpus}x {gpu}",
        "gpu_description": gpu,
        "price_cents_per_hour": cents,
        "specs": {"vcpus": 30 * gpus, "memory_gib": 200 * gpus, "storage_gib": 512, "gpus": gpus},
    }
    for name, gpu, gpus, cents in (
        ("gpu_1x_a10", "A10 (24 GB PCIe)", 1, 86),
        ("gpu_1x_h100_sxm5", "H100 (80 GB SXM5)", 1, 429),
        ("gpu_8x_h100_sxm5", "H100 (80 GB SXM5)", 8, 3192),
    )
}
TYPES["cpu_4x_general"] = {
    "name": "cpu_4x_general",
    "description": "4x CPU General",
    "gpu_description": "N/A",
    "price_cents_per_hour": 10,
    "specs": {"vcpus": 4, "memory_gib": 16, "storage_gib": 100, "gpus": 0},
}


@dataclass
class Machine:
    """One machine; moments are true."""

    id: str
    body: dict[str, Any]
    launched: datetime
    status: str = "booting"
    gone_at: datetime | None = None
    """From then on a terminating one is terminated, and soon forgotten."""
    boot: subprocess.Popen[bytes] | None = None

    @property
    def label(self) -> str:
        return self.body.get("name") or ""


class LambdaCloud(Simulator):
    """One account."""

    def __init__(self, clock: Clock = utc_now) -> None:
        super().__init__(clock)
        self.bill = Bill(clock)
        self.machines: dict[str, Machine] = {}
        self.capacity: dict[str, tuple[str, ...]] = {
            "gpu_1x_a10": ("us-west-2", "us-east-1"),
            "gpu_1x_h100_sxm5": ("europe-central-1",),
            "cpu_4x_general": ("us-east-1",),
        }
        """Type -> regions that have it."""
        self.shows_capacity_it_lacks = False
        """The types show capacity that a launch then does not find."""
        self.is_active = True
        """Else the account is closed for want of money: 403."""
        self.launch_error: tuple[int, str] | None = None
        """Status and code that the next launches answer."""
        self.ssh_keys = ["laptop"]
        self.terminating_for = timedelta(0)
        self.forgets_terminated = True
        self.call_every_s: float | None = 1.0
        """Sooner than that 429 without a body; None = no limit. The same for launches."""
        self.launch_every_s: float | None = 12.0
        self._last_call_s = self._last_launch_s = float("-inf")
        self.folder: Path | None = None
        """Where machines boot; None: they stand still."""
        self.machine_env: Mapping[str, str] = {}

    def __exit__(self, *_: object) -> None:
        for machine in self.machines.values():
            _power_off(machine)
        super().__exit__()

    # ---- what a test does to a machine -------------------------------------------------------------------------

    def of(self, attempt_hex: str) -> list[Machine]:
        """Every machine that was ever launched for an attempt."""
        with self.changed:
            return [machine for machine in self.machines.values() if attempt_hex in machine.label]

    def begin(self, machine: Machine) -> None:
        """It has booted."""
        machine.status = "active"

    def vanish(self, machine: Machine) -> None:
        """Its host died, or somebody terminated it in the console."""
        with self.changed:
            self._terminate(machine)
            machine.status = "terminated"

    def preempt(self, machine: Machine) -> None:
        """Lambda takes it away. Whether it costs on is not said anywhere; here it does, until it is terminated."""
        machine.status = "preempted"
        _power_off(machine)

    # ---- the API -----------------------------------------------------------------------------------------------

    def is_create(self, call: Call) -> bool:
        return call.path.endswith("/instance-operations/launch")

    def refusal(self, status: int) -> Answer:
        if status == 429:
            return Answer(429, body=b"")
        return _error(status, "global/internal-error" if status >= 500 else "global/account-inactive")

    def route(self, call: Call) -> Answer:
        if call.headers.get("authorization") != f"Bearer {KEY}":
            return _error(401, "global/invalid-api-key")
        if self._is_too_soon(call):
            return Answer(429, body=b"")
        if not self.is_active:
            return _error(403, "global/account-inactive")
        with self.changed:
            return self._answer(call, call.path.removeprefix("/api/v1/").split("/"))

    def _is_too_soon(self, call: Call) -> bool:
        now = time.monotonic()
        with self.changed:
            last, self._last_call_s = self._last_call_s, now
            is_soon = self.call_every_s is not None and now - last < self.call_every_s * _LENIENT
            if self.is_create(call) and not is_soon:
                last, self._last_launch_s = self._last_launch_s, now
                is_soon = self.launch_every_s is not None and now - last < self.launch_every_s * _LENIENT
            return is_soon

    def _answer(self, call: Call, parts: list[str]) -> Answer:  # noqa: PLR0911 - one return for each route
        for machine in self.machines.values():
            if machine.status == "terminating" and machine.gone_at is not None and self.clock() >= machine.gone_at:
                machine.status = "terminated"
        shown = {machine.id: machine for machine in self.machines.values() if self._is_shown(machine)}
        match call.method, parts:
            case "GET", ["instance-types"]:
                return Answer(200, {"data": self._types()})
            case "GET", ["ssh-keys"]:
                return Answer(200, {"data": [{"id": name, "name": name, "public_key": ""} for name in self.ssh_keys]})
            case "GET", ["instances"]:
                return Answer(200, {"data": [self._view(machine) for machine in shown.values()]})
            case "GET", ["instances", ref] if ref in shown:
                return Answer(200, {"data": self._view(shown[ref])})
            case "POST", ["instance-operations", "launch"]:
                return self._launch(call.json())
            case "POST", ["instance-operations", "terminate"]:
                return self._terminated(call.json()["instance_ids"])
            case _:
                return _error(404, "global/object-does-not-exist")

    def _launch(self, body: dict[str, Any]) -> Answer:
        unknown = body.keys() - FIELDS - FIELDS_TOO
        too_long = len(body.get("name", "")) > 64 or len(body.get("user_data", "")) > 1_000_000
        if self.launch_error is not None:
            return _error(*self.launch_error)
        if unknown or too_long or len(body.get("ssh_key_names", [])) != 1 or body["region_name"] not in REGIONS:
            return _error(400, "global/invalid-parameters")
        if body["instance_type_name"] not in TYPES or body["ssh_key_names"][0] not in self.ssh_keys:
            return _error(400, "global/object-does-not-exist")
        there = self.capacity.get(body["instance_type_name"], ())
        if self.shows_capacity_it_lacks or body["region_name"] not in there:
            return _error(400, "instance-operations/launch/insufficient-capacity")
        machine = Machine(uuid.uuid4().hex, body, self.clock())
        self.machines[machine.id] = machine
        cents = TYPES[body["instance_type_name"]]["price_cents_per_hour"]
        self.bill.start(machine.id, machine.label, cents * 10_000)
        if self.folder is not None:
            self._boot(machine, self.folder / machine.id)
        return Answer(200, {"data": {"instance_ids": [machine.id]}})

    def _terminated(self, ids: list[str]) -> Answer:
        if any(ref not in self.machines or not self._is_shown(self.machines[ref]) for ref in ids):
            return _error(404, "global/object-does-not-exist")
        for ref in ids:
            self._terminate(self.machines[ref])
        return Answer(200, {"data": {"terminated_instances": [self._view(self.machines[ref]) for ref in ids]}})

    def _terminate(self, machine: Machine) -> None:
        if machine.status not in {"terminating", "terminated"}:
            machine.status, machine.gone_at = "terminating", self.clock() + self.terminating_for
            self.bill.end(machine.id)
            _power_off(machine)

    def _boot(self, machine: Machine, root: Path) -> None:
        root.mkdir(parents=True)
        script = root / "part-001"
        script.write_text(machine.body["user_data"], encoding="utf-8")
        places = {"TW_ROOT": str(root / "opt"), "TW_CLOUD_DIR": str(root / "cloud"), "HOME": str(root)}
        machine.boot = subprocess.Popen(
            ["bash", str(script)],
            cwd=root,
            env={"PATH": os.environ["PATH"], **self.machine_env, **places},
            start_new_session=True,
        )
        machine.status = "active"

    def _is_shown(self, machine: Machine) -> bool:
        return machine.status != "terminated" or not self.forgets_terminated

    def _types(self) -> dict[str, Any]:
        return {
            name: {
                "instance_type": kind,
                "regions_with_capacity_available": [
                    {"name": region, "description": region} for region in self.capacity.get(name, ())
                ],
            }
            for name, kind in TYPES.items()
        }

    def _view(self, machine: Machine) -> dict[str, Any]:
        """As it is shown: without its user data, and without an address while it boots."""
        address = {} if machine.status == "booting" else {"ip": "203.0.113.9", "private_ip": "10.19.0.9"}
        return {
            "id": machine.id,
            "name": machine.body.get("name"),
            "status": machine.status,
            "ssh_key_names": machine.body["ssh_key_names"],
            "file_system_names": [],
            "region": {"name": machine.body["region_name"], "description": ""},
            "instance_type": TYPES[machine.body["instance_type_name"]],
            "hostname": machine.id[:8],
            "jupyter_token": "a-secret-of-jupyter",
            "jupyter_url": "https://jupyter.example/?token=a-secret-of-jupyter",
            "tags": machine.body.get("tags", []),
            "actions": {},
            **address,
        }


def _power_off(machine: Machine) -> None:
    if machine.boot is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(machine.boot.pid, signal.SIGKILL)
        machine.boot.wait()


def _error(status: int, code: str) -> Answer:
    return Answer(status, {"error": {"code": code, "message": f"simulated {code}", "suggestion": "Try again."}})
