"""Writing on from a prompt with a trained model."""
