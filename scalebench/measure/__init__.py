"""Clocks, memory, energy, the environment, what the machine is, and robust statistics of samples."""
