"""What is measured of a trial: time, memory, energy and the environment. Loss is the training loop's own."""
