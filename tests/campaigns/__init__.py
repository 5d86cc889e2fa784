"""Hostile campaigns: tests run a sample of each, `python -m tests.campaigns.NAME` all of it."""
