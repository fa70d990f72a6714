"""Architectures of PSViTs, and spaces of them, as values. Standard library and pydantic only."""
