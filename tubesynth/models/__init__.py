"""Networks. They take plain arguments and tensors, and know no config, loss or process."""
