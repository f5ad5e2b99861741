"""Runs an artifact: executor, KV blocks, sampler and engine."""
