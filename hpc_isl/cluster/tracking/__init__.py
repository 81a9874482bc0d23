"""Forwarding runs to MLflow."""
