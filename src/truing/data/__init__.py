"""Outside files to our types; knows nothing about models."""
