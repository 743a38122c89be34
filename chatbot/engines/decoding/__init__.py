"""How the transformers engine generates: key-value caches kept and shared, requests that run in one batch.

running.py      what can run token ids through a model, for one sequence or for several at once
ragged.py       several sequences of any lengths in one forward pass, through an attention function of our own
plain.py        one sequence at a time, with transformers' own cache: for every other architecture
encoder_decoder.py  one sequence at a time, for T5 and its like
store.py        caches of finished generations, found again by their longest common prefix
choosing.py     from logits to a token and its log-probabilities
scheduling.py   the thread that runs everybody's requests together
speculation.py  assisted decoding
adapters.py     LoRA and other adapters
loading.py      weights and tokenizers from where they lie
"""
