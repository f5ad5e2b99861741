"""From a kernel node to a kernel: TVM for CPUs, Triton for GPUs, and what they share."""
