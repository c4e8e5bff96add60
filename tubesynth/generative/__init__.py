"""Generative processes and solvers. They take any callable network."""
