"""What every folder may use and none of Parley's own code underneath it: files, model names, command-line manners."""
