"""Making and judging weights, at a desk. Never imports ``ros``."""
