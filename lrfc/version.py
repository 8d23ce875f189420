"""The version of lrfc."""

__version__ = "0.1.0"
