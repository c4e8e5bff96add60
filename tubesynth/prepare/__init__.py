"""ImageCAS becomes training and validation folders: `tubesynth prepare`."""
