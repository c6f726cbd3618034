"""`python -m truing`."""

from truing.cli import main

if __name__ == "__main__":
    main()
