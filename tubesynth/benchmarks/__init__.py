"""What `python -m tubesynth.bench` measures: one file a part of the work."""
