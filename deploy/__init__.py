"""Programs that set Tunewright up and run it: embedded, in containers, and as a demonstration."""
