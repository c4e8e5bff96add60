"""From files to batches: preprocessing, the disk cache, data sets by sample index, augmentation."""
