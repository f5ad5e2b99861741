"""Kernel templates: Triton functions that generated entries call, hooks and tiles handed over."""
