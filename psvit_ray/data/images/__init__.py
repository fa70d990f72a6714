"""Decoding of images: from the bytes of a file to channels of 8 bits."""
