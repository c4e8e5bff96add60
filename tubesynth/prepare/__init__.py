"""ImageCAS becomes training and validation folders: `python -m tubesynth.prepare`."""
