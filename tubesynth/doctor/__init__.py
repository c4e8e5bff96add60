"""Checks of data, config, disk and device before a run: `tubesynth doctor`."""
