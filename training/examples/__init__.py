"""From rows (training/data/) to batches: token ids and loss masks, kept on disk, laid out, ordered, padded."""
