# pyright: basic
"""What a session is given, and what a kind of training makes of it for `trainer/entry/session.py` to run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.config.job import Job
from trainer.control import Control
from trainer.fetch import Fetcher
from trainer.publish.deliveries import Deliveries
from trainer.publish.publisher import Publisher
from trainer.report.events import Reporter
from trainer.train.task import Evaluation
from trainer.train.trainee import Trainee


@dataclass(frozen=True)
class Session:
    """The attempt's surroundings. `fetcher` is None when run alone."""

    job: Job
    work_dir: Path
    cache_dir: Path
    device: str
    reporter: Reporter
    publisher: Publisher
    fetcher: Fetcher | None
    control: Control
    deliveries: Deliveries

    @property
    def checkpoints(self) -> Path:
        """Where finished checkpoints lie."""
        return self.work_dir / "checkpoints"


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to begin: base loaded, data cached, nothing drawn from any source of chance yet."""

    trainee: Trainee
    validate: Callable[[], None]
    """Shows what the model can do now (pictures, or answers); leaves every source of chance untouched."""
    facts: dict[str, str]
    """What the model is, for the metadata of its files; the session adds job, step and config."""
    companions: Callable[[Path], list[Path]] = lambda _folder: []
    """Writes what belongs beside the result, after it (a tokenizer, a merged model), and returns the files."""
    evaluation: Evaluation | None = None
