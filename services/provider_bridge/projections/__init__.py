"""Read models of the bridge."""
