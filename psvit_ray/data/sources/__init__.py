"""Sources of labelled and unlabelled images: digits, folders, Parquet and torchvision's sets."""
