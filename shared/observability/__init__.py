"""Names, logs, traces and metrics: one correlation id through every hop."""
