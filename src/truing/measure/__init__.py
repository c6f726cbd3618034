"""Model and data to rows; pure, no plotting, no training."""
