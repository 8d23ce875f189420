"""Configuration of a build: options, their values, and where they come from."""
