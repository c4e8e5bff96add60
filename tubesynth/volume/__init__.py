"""Geometry and content of CT volumes: files, grids, resampling, vessels, phantoms. No torch."""
