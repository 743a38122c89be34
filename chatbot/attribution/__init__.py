"""Whether the passages that a model was shown support what it says, sentence by sentence."""
