"""From a study to its results: the plan, the sweep, the worker of a trial, and the engines that place workers."""
