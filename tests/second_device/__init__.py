"""A device beside the CPU, to see that a compile mixes no devices where there is no GPU."""
