"""From a `RunSpec` to the typed values the rest of the trainer works with."""
