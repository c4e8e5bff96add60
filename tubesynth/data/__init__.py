"""From files to batches: the disk cache, the data sets, the order of draws, augmentation."""
