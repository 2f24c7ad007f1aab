"""What is done with a model: training or inference, from the description of a trial to its measurements."""
