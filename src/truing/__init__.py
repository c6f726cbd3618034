"""truing: helpful, honest, harmless, and measured."""

__version__ = "0.1.0"
