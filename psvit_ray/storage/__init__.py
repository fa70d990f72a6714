"""Access to disks and object stores: folders, files, atomic and durable writes."""
