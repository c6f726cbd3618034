"""Weights in memory; knows nothing about data sets or training."""
