# pyright: basic
"""What the one training loop asks of whatever is trained: losses in a repeatable order, and a part that learns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor, nn


class Task(Protocol):
    """What is taught, and in which order. All chance comes from `noise` and from the task's own restorable state."""

    @property
    def epoch(self) -> int:
        """The pass over the data that the next batch belongs to, counted from 0."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made with to fit: base, targets, dataset. Plain JSON values."""
        ...

    def losses(self, micro_batches: int, noise: Generator) -> Iterator[Tensor]:
        """The losses of one update, a scalar with gradient per micro-batch, weighted so that their sum is its loss.

        The caller runs the backward pass of each before it asks for the next.
        """
        ...

    def figures(self) -> dict[str, float]:
        """What else the last update measured, by the names of a metrics line; `samples` and `tokens` become speeds."""
        ...

    def position(self) -> dict[str, Any]:
        """Where in the data the next update begins, as plain JSON values."""
        ...

    def go_to(self, position: dict[str, Any]) -> None:
        """Go on from a stored position."""
        ...

    def load_of_one_batch(self) -> str:
        """What fills the memory, for a message: `batch 4 at resolution 1024`."""
        ...

    def advice_for_less_memory(self) -> str:
        """What to set when the smallest batch does not fit either."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A task whose micro-batches can be taken in parts, for less memory at a time."""

    def divide(self, parts: int) -> bool:
        """From now on each micro-batch comes as this many losses of the same sum; False when it has too few samples."""
        ...


@runtime_checkable
class Naming(Protocol):
    """A task that knows its samples by name."""

    def samples_of(self, loss: int) -> list[str]:
        """What the loss of this number in the last update was computed from, as a user knows it: file names."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """The loss on samples that are never trained on, and when it is measured besides at the end."""

    measure: Callable[[], float]
    every_steps: int | None
    every_epochs: int | None


class TrainedPart(Protocol):
    """The parameters that learn, inside the network they belong to: an adapter, or the whole of it."""

    model: Any
    """The network as it is called, with the trained part in it."""
    parameters: list[nn.Parameter]

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint's tensors must have been made with: kind, rank, alpha, targets. Plain JSON values."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name, detached copies on the CPU."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors of the same names and shapes back."""
        ...

    def write(self, folder: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        """Write the tensors in the layout that other programs load, `facts` in their metadata; returns the files."""
        ...

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The tensors that `write` wrote into a folder, by the names of `tensors`."""
        ...
