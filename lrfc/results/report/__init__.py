"""The report of a build, for people: one HTML file that needs nothing else."""
