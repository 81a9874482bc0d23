"""Run folders: names, provenance, submissions, arrays, and what uses them."""
