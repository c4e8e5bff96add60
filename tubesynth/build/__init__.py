"""Networks and objectives from a config, and autoencoders from a checkpoint."""
