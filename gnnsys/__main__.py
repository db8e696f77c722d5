"""``python -m gnnsys`` is the ``gnnsys`` command."""

from gnnsys.commands.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
