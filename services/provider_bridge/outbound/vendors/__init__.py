"""Adapters of companies that rent GPUs: one module each, and one constant KIND that says what it is."""
