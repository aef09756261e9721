"""A worker's token: from a private file or the environment, never from the command line."""

import stat
from collections.abc import Mapping
from pathlib import Path

from services.cli.exit_codes import USAGE
from services.cli.failures import CliError

VARIABLE = "TUNEWRIGHT_WORKER_TOKEN"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class TokenSource:
    """Reads the token anew each time, so that a rotated one is taken up without a restart."""

    def __init__(self, file: Path | None, environ: Mapping[str, str]) -> None:
        self._file = file
        self._given = environ.get(VARIABLE, "").strip()
        if file is None and not self._given:
            raise CliError(
                "the worker's token is missing",
                advice=f"Name a file that holds it with --token-file, or set {VARIABLE}.",
                exit_code=USAGE,
            )

    def read(self) -> str:
        """The token as it is now. Raises CliError for a file that is not there, or that others can read."""
        if self._file is None:
            return self._given
        try:
            mode = self._file.stat().st_mode
            text = self._file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"the token file cannot be read: {error}", advice="Put the worker's token there.") from error
        if mode & _OTHERS:
            raise CliError(f"{self._file} can be read by others", advice=f"chmod 600 {self._file}")
        if not text:
            raise CliError(f"{self._file} is empty", advice="Put the worker's token there.")
        return text
