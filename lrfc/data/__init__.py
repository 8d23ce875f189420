"""Data sets: reading, splitting, checking, and synthetic inputs."""
