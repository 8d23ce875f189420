"""Costs of operations: latency, memory, and what they are predicted from."""
