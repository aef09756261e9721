"""What every command works with: where Tunewright is, and how to print."""

import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from services.cli.exit_codes import USAGE
from services.cli.failures import CliError, Place
from services.cli.gateway import Gateway
from services.cli.terminal import Terminal

DEFAULT_URL = "http://127.0.0.1:8001"
_PREFIX = re.compile(r"[0-9a-f-]{1,36}")


class Session:
    """One invocation. The environment is read here and nowhere else."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        url: str | None = None,
        data_dir: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.environ = os.environ if environ is None else environ
        self.terminal = Terminal(as_json=as_json)
        self._url = url
        self._data_dir = data_dir

    @property
    def data_dir(self) -> Path:
        """--data-dir, TUNEWRIGHT_DATA_DIR or ~/.tunewright."""
        given = self._data_dir or self.environ.get("TUNEWRIGHT_DATA_DIR") or "~/.tunewright"
        return Path(given).expanduser().absolute()

    @cached_property
    def run_state(self) -> Mapping[str, Any]:
        """What embedded mode says of itself while it runs from the data directory; empty when it does not."""
        try:
            found: object = json.loads((self.data_dir / "run" / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}

    @cached_property
    def gateway(self) -> Gateway:
        """--url, TUNEWRIGHT_URL, the embedded one of the data directory, or port 8001 of this machine."""
        url = self._url or self.environ.get("TUNEWRIGHT_URL") or self.run_state.get("gateway_url") or DEFAULT_URL
        if not str(url).startswith(("http://", "https://")):
            raise CliError(f"{url} is not an http:// or https:// URL", exit_code=USAGE)
        return Gateway(str(url), self.environ.get("TUNEWRIGHT_API_KEY"))

    def job_id(self, given: str) -> str:
        """The whole id of the job that `given` begins; a whole id is taken as it is.

        Raises:
            CliError: no listed job begins so, or several do.
        """
        text = given.strip().lower()
        try:
            return str(UUID(text))
        except ValueError:
            pass
        if not _PREFIX.fullmatch(text):
            raise CliError(f"{given!r} is not the beginning of a job id", advice="`tunewright ps` lists the jobs.")
        found = [job for job in self.gateway.jobs() if str(job["job_id"]).startswith(text)]
        if len(found) == 1:
            return str(found[0]["job_id"])
        if not found:
            raise CliError(f"no job begins with {text}", advice="`tunewright ps` lists the jobs.", code="job_not_found")
        places = [Place(where=str(job["job_id"]), message=str(job["status"])) for job in found[:5]]
        raise CliError(
            f"{len(found)} jobs begin with {text}", places=places, advice="Write more of the id.", exit_code=USAGE
        )

    def close(self) -> None:
        """Closes the connections that were opened."""
        if "gateway" in self.__dict__:
            self.gateway.close()
