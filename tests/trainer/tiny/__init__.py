"""Tiny models of the real architectures, built from nothing in a second: one recipe file per kind of part."""
