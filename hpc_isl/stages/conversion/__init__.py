"""What `convert` is made of: survey, costs, records, and the work on one field."""
