"""Checks of data, config, disk and device before a run: `python -m tubesynth.doctor`."""
