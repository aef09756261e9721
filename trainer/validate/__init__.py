"""Pictures rendered while training, to see what the model has learned."""
