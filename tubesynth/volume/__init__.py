"""Geometry of CT volumes: files, grids, resampling, polylines and vessels. No torch."""
