"""From a recipe and a site to jobs that run."""
