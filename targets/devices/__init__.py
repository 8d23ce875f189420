"""Devices: profiles, runners and measurement."""
