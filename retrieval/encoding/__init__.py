"""Sentence encoders that run a model; `retrieval.encoders` opens them."""
