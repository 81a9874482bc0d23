"""What `segment` is made of: setting, the work on one field, and the end of a run."""
