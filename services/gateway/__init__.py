"""Gateway: the one HTTP door. Translates requests into commands, and the log into answers; writes no job state."""
