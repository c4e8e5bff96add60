"""What a volume is worth: image, distribution and vessel metrics."""
