"""Points of any trainer, the laws fitted to them and what they predict; nothing here imports torch."""
