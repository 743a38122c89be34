"""The bot over HTTP, for OpenAI's clients and for a page in a browser.

Run: python -m chatbot.server --index indexes/sample
     curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
          -d '{"messages": [{"role": "user", "content": "What is Zurich?"}]}'

`commands` is the command line, `opening` makes of it what `chatbot.api` works with, `app` joins the routes to one
application, `gate` is what every request passes first, and `work` runs the models in threads. It listens on this
machine only, unless --host says otherwise, and then asks for a key.
"""

from chatbot.server.commands import cli

__all__ = ["cli"]
