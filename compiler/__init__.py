"""Joins the parts: capture, import, pipeline, build, verify and the command line."""
