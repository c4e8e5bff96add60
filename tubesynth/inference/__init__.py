"""Applying trained models to folders of cases."""
