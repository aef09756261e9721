"""Read models of the scheduler."""
