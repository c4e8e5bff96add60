"""Synthetic CT that obeys a given anatomy, down to the coronary arteries."""

__version__ = "0.1.0"
