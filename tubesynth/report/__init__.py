"""Pictures, charts and the page of an evaluation."""
