"""What needs gradients of weights: the demonstration models and their data."""
