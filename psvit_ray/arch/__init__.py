"""What a PSViT is, as a value. Standard library and pydantic only."""
