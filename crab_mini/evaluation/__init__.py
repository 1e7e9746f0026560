"""Answering with a trained model, scoring the answers, and showing both."""
