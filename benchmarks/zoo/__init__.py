"""The networks that lrfc is evaluated on, with their data sets, training and metrics."""
