"""Metrics, and the accuracy contract."""
