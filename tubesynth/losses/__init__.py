"""Loss functions of the training stages."""
