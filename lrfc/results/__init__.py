"""Contents of an output folder: manifest, tables, comparison and report."""
