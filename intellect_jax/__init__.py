"""Train language models together, across the internet. See docs/."""

__version__ = "0.1.0"
