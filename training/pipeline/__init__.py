"""Models that are larger than one device: cut into stages, a process each, on torch.distributed.pipelining."""
