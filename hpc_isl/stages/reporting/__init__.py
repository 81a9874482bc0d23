"""What `report` is made of: a sweep as it was read, statistics, pictures, the page."""
