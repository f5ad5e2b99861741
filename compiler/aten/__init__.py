"""ATen ops as tensor ops, one table a family."""
