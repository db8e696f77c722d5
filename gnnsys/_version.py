"""The version of the installed distribution, read where it is stated once: pyproject.toml."""

from importlib.metadata import version

__version__ = version("gnnsys")
