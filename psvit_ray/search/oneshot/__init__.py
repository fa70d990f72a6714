"""The one-shot search: candidates scored with the weights of a supernet, finalists trained."""
