"""Import of Keras models into graphs, and export of graphs to Keras models."""
