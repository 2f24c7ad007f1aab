"""Figures of trials, shared by the sections of the report; each returns its caption and the table behind it."""
