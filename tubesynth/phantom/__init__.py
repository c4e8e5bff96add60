"""A procedural coronary CT angiogram with ground truth: `tubesynth phantom`."""
