"""The error of a single image, which is left out while the run goes on."""


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason."""
