"""Further training of the models. Empty in this release: the data shapes it will read are already written
(conversations, prompt/response pairs, ratings), by `chatbot/session.py`."""
