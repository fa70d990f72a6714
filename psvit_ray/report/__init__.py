"""Tables and pictures, made from the record. Starts no run."""
