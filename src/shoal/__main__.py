"""`python -m shoal` is the command `shoal`."""

from shoal.cli.app import main

main()
