"""The HTTP API without HTTP: a checked request in (`schema`), dicts in OpenAI's shapes out (`answers`). No sockets
here, and no threads: `chatbot.server` has those.

`service` is what all of it works with; `chat`, `completions`, `embeddings`, `moderations`, `rerank`, `retrieval`,
`feedback` and `models` are an endpoint each.
"""
