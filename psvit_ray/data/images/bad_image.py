"""What is wrong with one image, which costs that image and not the run."""


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason."""
