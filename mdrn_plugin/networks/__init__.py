"""Neural networks: torch modules that know tensors and nothing else."""
