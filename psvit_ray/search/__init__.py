"""Which configurations to try, and what came of them. Knows no Ray."""
