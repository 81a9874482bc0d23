"""What `annotate` is made of: label files that come in, and folders lent to a person."""
