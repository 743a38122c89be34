"""`python -m moderation`: see moderation/cli.py."""

from moderation.cli import cli

if __name__ == "__main__":
    cli(prog_name="python -m moderation")
