"""The tables, charts and HTML page of an evaluation."""
