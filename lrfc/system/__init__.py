"""Files, locks, temporary folders and settings of the process."""
