"""Where labelled and unlabelled images are stored, and how they are found there."""
