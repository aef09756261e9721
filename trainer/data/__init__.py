"""From pictures and captions on disk to batches of cached tensors."""
