"""What every run needs: processes, seeds, EMA, checkpoints, logs, pictures."""
