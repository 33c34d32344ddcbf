"""`python -m peertalk`: the same command line as the script `peertalk`."""

from .cli import main

if __name__ == "__main__":
    main()
