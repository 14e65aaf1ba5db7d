import minillm  # noqa: F401 - the first: it says what is not installed
