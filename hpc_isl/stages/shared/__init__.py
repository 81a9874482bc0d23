"""Modules that several stages share; they import none of the stages."""
