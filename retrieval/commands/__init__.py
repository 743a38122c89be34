"""The commands of `python -m retrieval`; `retrieval.build` joins them."""
