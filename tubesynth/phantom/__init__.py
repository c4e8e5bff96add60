"""A procedural coronary CT angiogram with known truth: `tubesynth phantom`."""
