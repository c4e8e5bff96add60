"""A procedural coronary CT angiogram with known truth: `python -m tubesynth.phantom`."""
