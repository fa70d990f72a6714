"""Loading: from tables of images to the batches of one worker."""
