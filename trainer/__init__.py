"""The trainer: one process that runs one attempt, from a `RunSpec` to a LoRA file, reporting as it goes."""

__version__ = "0.1.0"
