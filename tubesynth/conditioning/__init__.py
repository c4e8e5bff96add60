"""Label maps and vessels of a case as the conditions of a model, on the grid of the model."""
