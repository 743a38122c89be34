"""The `parley` command: one door to what the folders do."""
