"""Config and data to a Run; one file per thing trained."""
