"""Keras models to graphs and back."""
