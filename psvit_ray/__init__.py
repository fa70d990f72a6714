"""PSViT: vision transformers with searched token pooling and attention sharing, on Ray."""
