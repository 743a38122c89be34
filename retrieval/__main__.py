"""`python -m retrieval`: see `retrieval.build`."""

from retrieval.build import cli

if __name__ == "__main__":
    cli(prog_name="python -m retrieval")
