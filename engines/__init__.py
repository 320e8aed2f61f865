"""What a network is once compiled: bundles, bindings and engines (NumPy and the standard library only)."""
