"""Pictures of volumes, label maps and vessels."""
