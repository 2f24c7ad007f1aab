"""``python -m scalebench``: the command line."""

from scalebench.cli.entry import main

main()
