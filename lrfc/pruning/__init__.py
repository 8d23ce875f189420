"""Structured pruning: dependency groups, criteria, and the removal of units, as pure functions."""
