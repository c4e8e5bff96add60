"""Label maps and vessels of a case, converted to conditions on the grid of a model."""
