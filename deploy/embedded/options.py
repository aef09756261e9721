"""What `tunewright up` can be told."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What the operator asked for."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8001
    database_url: str | None = None
    nats_url: str | None = None
    config_dir: Path | None = None
    dataset_roots: Sequence[Path] = ()
    extra_env: Mapping[str, str] = field(default_factory=dict[str, str])
    log_format: str = "json"


def options_from(arguments: Sequence[str]) -> UpOptions:
    """The options of the bare `python -m deploy.embedded.up`; `tunewright up` has the same and more."""
    parser = argparse.ArgumentParser(prog="python -m deploy.embedded.up", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--database-url", help="a Postgres that is already there, as a superuser")
    parser.add_argument("--nats-url", help="a NATS with JetStream that is already there")
    parser.add_argument("--config-dir", type=Path, help="training configs to serve")
    parser.add_argument(
        "--dataset-root",
        dest="dataset_roots",
        action="append",
        default=[],
        type=Path,
        help="datasets come from inside this directory only; may be repeated",
    )
    parser.add_argument("--log-format", choices=("json", "console"), default="json")
    return UpOptions(**vars(parser.parse_args(arguments)))
