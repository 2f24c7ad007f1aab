"""``python -m scalebench``: the command line."""

from scalebench.cli.app import main

main()
