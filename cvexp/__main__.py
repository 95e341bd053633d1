"""`python -m cvexp`."""

from cvexp.app import main

main()
