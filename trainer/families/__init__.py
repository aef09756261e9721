"""One small file per model family behind one protocol."""
