"""Thirteen notebooks that import crab_mini, exercises with checks, and the commands that build and
grade them."""
