"""Metrics, the accuracy contract, and the outcome of a build."""
