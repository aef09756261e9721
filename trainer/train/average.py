# pyright: basic
"""The moving average of the trained tensors, which often samples better than the last ones."""

from torch import Tensor


class Average:
    """An exponential moving average, kept on the CPU in float32. For `warmup_steps` it equals the last values."""

    def __init__(self, tensors: dict[str, Tensor], decay: float, warmup_steps: int = 0) -> None:
        self.tensors = {name: tensor.float().clone() for name, tensor in tensors.items()}
        self._decay = decay
        self._warmup_steps = warmup_steps

    def update(self, tensors: dict[str, Tensor], step: int) -> None:
        """Move towards `tensors`; without a warm-up early steps move faster, so that the start does not linger."""
        if step <= self._warmup_steps:
            decay = 0.0
        else:
            decay = self._decay if self._warmup_steps else min(self._decay, (1 + step) / (10 + step))
        for name, tensor in tensors.items():
            self.tensors[name].lerp_(tensor.float(), 1.0 - decay)
