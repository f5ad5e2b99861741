"""Exchange with MLIR through torch-mlir, which only this folder imports (the extra `mlir`).

program.py makes a graph a module that torch.export traces, values.py has the few reference values
that tracing cannot follow, dialects.py writes the program in a dialect, running.py runs it by
MLIR's own lowering to machine code.
"""
