# pyright: basic
"""The moving average of the trained tensors, which often samples better than the last ones."""

from torch import Tensor


class Average:
    """An exponential moving average, kept on the CPU in float32."""

    def __init__(self, tensors: dict[str, Tensor], decay: float) -> None:
        self.tensors = {name: tensor.float().clone() for name, tensor in tensors.items()}
        self._decay = decay

    def update(self, tensors: dict[str, Tensor], step: int) -> None:
        """Move towards `tensors`; early steps move faster, so that the start does not linger."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, tensor in tensors.items():
            self.tensors[name].lerp_(tensor.float(), 1.0 - decay)
