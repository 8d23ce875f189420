"""Tests; ``tests/test_<file>.py`` mirrors the file that it tests."""
