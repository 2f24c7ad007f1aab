"""One trial, from its description to its measurements: training, or inference."""
