"""Processes, devices, seeds, EMA, signals, logs, atomic files, errors and exit codes."""
