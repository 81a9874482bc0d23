"""What `table` is made of: runs as they are read, rows, maps of plates, files."""
