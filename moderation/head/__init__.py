"""The embedded classifier: a small multi-label head over a sentence embedding and the words of the text."""
