"""One module a stack: each runs in a process, and where it must in an environment, of its own."""
