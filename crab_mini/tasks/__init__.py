"""The nine tasks: what each asks, answers, means and scores."""
