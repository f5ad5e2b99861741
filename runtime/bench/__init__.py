"""Measuring what was built: a server under load, latency, throughput, startup."""
