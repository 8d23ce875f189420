"""The driver of a build: exploration, tuning, evaluation, packaging."""
