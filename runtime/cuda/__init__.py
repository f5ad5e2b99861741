"""Runs artifacts that were built for a GPU: memory in one arena, launches through a driver."""
