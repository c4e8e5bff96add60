"""The configuration of a run: schema, checks of the values, and reading from YAML."""
