"""What a run will take, before it is started: parameters, memory of each process, time; from a configuration alone."""
