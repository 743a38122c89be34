"""From files to what is trained on: mixtures of sources, their formats, typed rows, examples."""
