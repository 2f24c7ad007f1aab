"""Optimizers and learning-rate schedules, and their fused kernels."""
