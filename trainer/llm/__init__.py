"""Fine-tuning of language models: rows, tokens, batches, losses and predictions."""
