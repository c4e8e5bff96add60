"""The one training loop and the three stages that it runs."""
