"""Diffusion models: from a checked config and pictures to a task that the training loop can run."""
