"""From torch to a bundle: tracing, work on the graph, self-checks, packing. The only part that a device never sees."""
