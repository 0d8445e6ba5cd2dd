"""Arrays to arrays. Each docstring is the formula."""
