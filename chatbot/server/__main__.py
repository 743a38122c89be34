"""`python -m chatbot.server`."""

from chatbot.server.commands import cli

if __name__ == "__main__":
    cli()
