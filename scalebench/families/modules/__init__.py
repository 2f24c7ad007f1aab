"""The torch modules of the families, apart from their shapes and counts, so that a plan needs no torch."""
