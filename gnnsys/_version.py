"""The version of the installed distribution, read where it is stated once: pyproject.toml."""

from importlib.metadata import PackageNotFoundError, version

from gnnsys.errors import BuildError

try:
    __version__ = version("gnnsys")
except PackageNotFoundError as error:
    raise BuildError(
        "gnnsys is not installed: run `pip install .` at the top of the checkout"
    ) from error
