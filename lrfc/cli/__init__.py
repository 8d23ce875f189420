"""The command line: commands, their views, and the session that they run in."""
