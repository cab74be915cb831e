"""`python -m arrowquant_nb` is the `arrowquant` command."""

from arrowquant_nb.cli import main

if __name__ == "__main__":
    main(prog_name="arrowquant")
