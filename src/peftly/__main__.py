"""`python -m peftly` is `peftly`."""

from peftly.cli import main

if __name__ == "__main__":
    main()
