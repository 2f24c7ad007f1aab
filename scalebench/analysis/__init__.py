"""A study, analysed: the series of its trials, the laws fitted to them, their predictions. Nothing imports torch."""
