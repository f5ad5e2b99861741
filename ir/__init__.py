"""What a program is: types, nodes, graph, text, verifier, rewriting, target and plan."""
